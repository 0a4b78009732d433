"""A denoising autoencoder before the classifier."""

from __future__ import annotations

from torch import Tensor, nn

from robusttrain.core.checked import checked
from robusttrain.core.rng import Rng
from robusttrain.models.defense import Defense
from robusttrain.models.foreign import load_weights
from robusttrain.models.frozen import Frozen


@checked
class Denoiser(Defense):
    """g(x): one pass of a network that was trained to take Gaussian noise out of images.

    ``train.py --training denoiser`` trains one. The derivative is that of the network.

    Args:
        model: images in [0, 1] to images. The defense takes it over: it is in evaluation mode and
            frozen from then on.
        weights: file with its weights; None for the weights that ``model`` has.
        weights_which: which of several weights in the file, as ``which`` of `load_weights`.
    """

    trained_by = "denoiser"

    def __init__(
        self, model: nn.Module, weights: str | None = None, weights_which: str | None = None
    ) -> None:
        super().__init__()
        if weights is not None:
            load_weights(model, weights, weights_which)
        self.network = Frozen(model)

    def transform(self, images: Tensor, rng: Rng) -> Tensor:
        return self.network(images.float()).to(images.dtype)
