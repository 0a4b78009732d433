"""A classifier behind a defense."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from robusttrain.core.checked import Count, checked
from robusttrain.core.errors import UserError
from robusttrain.core.rng import Rng
from robusttrain.models import fast_copy
from robusttrain.models.declared import answer, as_module, says_random, takes_streams
from robusttrain.models.defense import check_defense
from robusttrain.models.voting import draws_of, log_mean

if TYPE_CHECKING:
    from robusttrain.models.defense import Defense


class DefendedClassifier(nn.Module):
    """f_a(g(x)): a plain module on images in [0, 1] that any attack library can call.

    Args:
        defense: g, or None for the bare classifier.
        classifier: f_a, images in [0, 1] to logits; normalisation inside. A module or a function.
    """

    #: Tells attacks that ``forward`` takes streams of randomness.
    takes_rng = True

    def __init__(
        self, defense: Defense | None, classifier: nn.Module | Callable[[Tensor], Any]
    ) -> None:
        super().__init__()
        self.classifier = as_module(classifier)
        if defense is not None:
            check_defense(defense)
        self.defense = None if defense is None else defense.bound_to(self.classifier)
        #: Whether `robusttrain.attacks.Queried` saw the target draw, or differ: a part may be
        #: random without saying so.
        self.observed_random = False
        #: Whether it was seen to draw from where no seed reaches.
        self.observed_unseen = False
        #: Names of the classes by their numbers, where a checkpoint says them.
        self.class_names: tuple[str, ...] = ()

    @classmethod
    def of(cls, model: nn.Module | Callable[[Tensor], Any]) -> DefendedClassifier:
        """The model itself if it is one, else a module or function without a defense.

        Raises:
            UserError: neither module nor function.
        """
        return model if isinstance(model, cls) else cls(None, model)

    @property
    def declared_random(self) -> bool:
        """Whether a part says that it is random."""
        return (self.defense is not None and bool(self.defense.random)) or says_random(
            self.classifier
        )

    @property
    def random(self) -> bool:
        """Whether two passes over one image may differ, as declared or as observed."""
        return self.declared_random or self.observed_random

    def forward(self, images: Tensor, rng: Rng | None = None) -> Tensor:
        """Logits (B, K) of images (B, C, H, W); ``rng`` as for ``Defense.forward``.

        Raises:
            UserError: the images are whole numbers, as loaders read them.
        """
        if not images.is_floating_point():
            raise UserError(
                f"images are {str(images.dtype).removeprefix('torch.')}, but pixel values must lie"
                " in [0, 1]: give images.float() / 255"
            )
        if self.defense is None:
            return classified(self.classifier, images, rng)
        return self.defense.predict(partial(classified, self.classifier), images, rng)

    def fast(self, dtype: torch.dtype = torch.float32) -> DefendedClassifier:
        """The same function for attacks: f_a with batch norm folded, in channels_last and
        ``dtype``.

        The defense is shared, not copied; logits come back in float32 or wider. A classifier in
        float64 stays so where ``dtype`` is float32.
        """
        fast = DefendedClassifier(self.defense, fast_copy(self.classifier, dtype))
        fast.observed_random = self.observed_random
        fast.observed_unseen = self.observed_unseen
        return fast


def classified(classifier: nn.Module, images: Tensor, rng: Rng | None) -> Tensor:
    """Logits of f_a behind g. If f_a takes streams, they are not those of g."""
    streams = None if rng is None or not takes_streams(classifier) else rng.fold("classifier")
    return answer(classifier, images, streams)


@checked
class MeanPrediction(nn.Module):
    """A random model's prediction, averaged over draws: log of the mean of its softmax [P4 5.1].

    Args:
        model: images to logits, random if ``takes_rng``.
        draws: passes that are averaged; 30 in the paper's entry to the challenge.
    """

    takes_rng = True

    def __init__(self, model: DefendedClassifier, draws: Count = 30) -> None:
        super().__init__()
        self.model, self.draws = model, draws

    def forward(self, images: Tensor, rng: Rng | None = None) -> Tensor:
        """Log-probabilities (B, K) of images (B, C, H, W); pass k takes ``rng.fold(k)``."""
        rng = Rng.from_global(len(images), images.device) if rng is None else rng
        return log_mean(draws_of(self.model, images, rng, self.draws))
