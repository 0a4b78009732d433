"""Gaussian noise: the noise of randomized smoothing [Cohen et al. 2019]."""

from __future__ import annotations

from torch import Tensor

from robusttrain.core.checked import NonNegative, checked
from robusttrain.core.rng import Rng
from robusttrain.models.clipping import clipped
from robusttrain.models.defense import Defense


@checked
class GaussianNoise(Defense):
    """x + N(0, sigma^2), independent for each colour of each pixel.

    Training behind this defense is the noise augmentation of Cohen et al. (section 3.4): each image
    has a draw of its own in every epoch. A `Vote` on this defense predicts as their smoothed
    classifier does, and is the preset ``smoothing``.

    Args:
        sigma: standard deviation, in pixel values; 0.12, 0.25, 0.5 and 1.0 in the paper, 0 changes
            nothing.
        clip: whether the noisy image is clipped to [0, 1]; the paper does not clip. A certificate
            stands either way: clipping is then the first thing that the classifier does.
    """

    def __init__(self, sigma: NonNegative = 0.25, clip: bool = False) -> None:
        super().__init__()
        self.sigma, self.clip = sigma, clip

    @property
    def random(self) -> bool:  # type: ignore[override]
        return self.sigma > 0

    @property
    def certified_sigma(self) -> float | None:  # type: ignore[override]
        return self.sigma or None

    def transform(self, images: Tensor, rng: Rng) -> Tensor:
        if not self.random:
            return clipped(images, 0, 1) if self.clip else images
        noisy = images + rng.normal(images.shape[1:]).mul_(self.sigma).to(images.dtype)
        return noisy.clamp(0, 1) if self.clip else noisy
