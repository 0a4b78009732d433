"""Sources: what the attacker differentiates.

``source(target)`` builds, from the defended classifier under attack, the model that the attack is given. What comes
out is always verified on the target itself, never on the source.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from robusttrain.defended import DefendedClassifier
from robusttrain.errors import UserError
from robusttrain.rng import Rng


class Source(ABC):
    """From the target to the model that the attacker differentiates."""

    #: What the attacker must know of the target to build this source.
    knows: str = ""

    @abstractmethod
    def __call__(self, target: DefendedClassifier) -> nn.Module:
        """A module from images (B, C, H, W) to logits (B, K).

        Raises:
            UserError: the source makes no sense for this target.
        """


def _defense_of(target: nn.Module, source: Source) -> nn.Module:
    """The target's defense, or one line that says why the source needs one."""
    defense = getattr(target, "defense", None)
    if defense is None:
        name = type(source).__name__
        raise UserError(f"source {name}: the target has no defense to go around; attack it as it is, with Target")
    assert isinstance(defense, nn.Module)
    return defense


@dataclass(frozen=True)
class Target(Source):
    """The defended classifier as it is, with whatever gradient automatic differentiation finds in it."""

    knows = "classifier, defense"

    def __call__(self, target: DefendedClassifier) -> nn.Module:
        return target


@dataclass(frozen=True)
class ClassifierOnly(Source):
    """f_a without its defense: white-box transfer ("WT" of [P1 4.2], the vanilla attack of [P4])."""

    knows = "classifier"

    def __call__(self, target: DefendedClassifier) -> nn.Module:
        _defense_of(target, self)
        return target.classifier


class _IdentityBackward(nn.Module):
    takes_rng = True

    def __init__(self, defense: nn.Module, classifier: nn.Module) -> None:
        super().__init__()
        self.defense, self.classifier = defense, classifier

    def forward(self, images: Tensor, rng: Rng | None = None) -> Tensor:
        with torch.no_grad():
            transformed = self.defense(images, rng)
        if transformed.shape != images.shape:
            raise UserError(
                f"source IdentityBackward: the defense turns images of {tuple(images.shape[1:])} into "
                f"{tuple(transformed.shape[1:])}, so its derivative cannot be the identity; use Target"
            )
        # The bracket is zero in value and the identity in derivative: forward sees g(x) exactly.
        logits: Tensor = self.classifier(transformed + (images - images.detach()))
        return logits


@dataclass(frozen=True)
class IdentityBackward(Source):
    """BPDA-I: forward through the true g, backward as if g were the identity (Athalye et al. 2018, [P1 4.1])."""

    knows = "classifier, defense"

    def __call__(self, target: DefendedClassifier) -> nn.Module:
        return _IdentityBackward(_defense_of(target, self), target.classifier)


@dataclass(frozen=True)
class Checkpoint(Source):
    """Another model, read from a checkpoint of this framework: black-box transfer.

    Args:
        path: checkpoint file.
        defended: whether to differentiate through that model's own defense as well (if it has one).
    """

    path: str
    defended: bool = False
    knows = "another model, labels"

    def __call__(self, target: DefendedClassifier) -> nn.Module:
        from robusttrain.checkpoints import load  # a checkpoint holds classes that live above this package

        surrogate = load(self.path)
        return surrogate if self.defended else surrogate.classifier
