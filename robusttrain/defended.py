"""A classifier behind a defense."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from robusttrain.models import fast_copy
from robusttrain.rng import Rng

if TYPE_CHECKING:
    from robusttrain.defenses.base import Defense


class DefendedClassifier(nn.Module):
    """f_a(g(x)): a plain module on images in [0, 1] that any attack library can call.

    Args:
        defense: g, or None for the bare classifier.
        classifier: f_a, images in [0, 1] to logits; normalisation inside.
    """

    #: Tells our attacks that ``forward`` takes streams of randomness.
    takes_rng = True

    def __init__(self, defense: Defense | None, classifier: nn.Module) -> None:
        super().__init__()
        self.defense = defense
        self.classifier = classifier

    @property
    def random(self) -> bool:
        """Whether two passes over one image may differ."""
        return self.defense is not None and bool(self.defense.random)

    def forward(self, images: Tensor, rng: Rng | None = None) -> Tensor:
        """Logits (B, K) of images (B, C, H, W); ``rng`` as for ``Defense.forward``."""
        if self.defense is not None:
            images = self.defense(images, rng)
        logits: Tensor = self.classifier(images)
        return logits

    def fast(self, dtype: torch.dtype = torch.float32) -> DefendedClassifier:
        """The same function for attacks: f_a with batch norm folded, in channels_last and ``dtype``.

        The defense is shared, not copied; logits come back as float32.
        """
        return DefendedClassifier(self.defense, fast_copy(self.classifier, dtype))
