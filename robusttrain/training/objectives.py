"""Training objectives: what the weights of f_a minimise.

``objective(model, images, labels, rng)`` returns one loss per image, and the logits that training accuracy is read
from. The inner maximisation of adversarial training is an attack like any other, on a source like any other: so
training through a random defense (identity backward, several draws) is configuration.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, field

import torch.nn.functional as F
from torch import Tensor

from robusttrain.attacks import Attack, KLDivergence, ProjectedGradient, Source, Target
from robusttrain.defended import DefendedClassifier
from robusttrain.errors import OptionError, at_least, within
from robusttrain.rng import Rng


class TrainingObjective(ABC):
    """From a batch to losses and logits. Subclasses are frozen dataclasses."""

    @abstractmethod
    def __call__(self, model: DefendedClassifier, images: Tensor, labels: Tensor, rng: Rng) -> tuple[Tensor, Tensor]:
        """Losses (B,) to minimise, and logits (B, K).

        Args:
            model: the defended classifier in training, in training mode.
            images: (B, C, H, W), pixel values in [0, 1].
            labels: (B,) int64.
            rng: streams of the images, (B,).
        """


@dataclass(frozen=True)
class Standard(TrainingObjective):
    """Cross entropy on the images as they are (behind the defense, if there is one).

    Args:
        label_smoothing: share of the target distribution that is spread over all classes.
    """

    label_smoothing: float = 0.0

    def __post_init__(self) -> None:
        within("label_smoothing", self.label_smoothing, 0, 1)

    def __call__(self, model: DefendedClassifier, images: Tensor, labels: Tensor, rng: Rng) -> tuple[Tensor, Tensor]:
        logits = model(images, rng)
        return F.cross_entropy(logits, labels, reduction="none", label_smoothing=self.label_smoothing), logits


def _default_attack() -> ProjectedGradient:
    return ProjectedGradient(steps=10, step_size=0.007)


@dataclass(frozen=True)
class Adversarial(TrainingObjective):
    """Cross entropy on adversarial images (Madry et al. 2018, eq. 2.1).

    Batch norm is in evaluation mode while the images are crafted and in training mode for the loss.

    Args:
        attack: the inner maximisation.
        source: what the inner attack differentiates; IdentityBackward to train through a defense.
        label_smoothing: share of the target distribution that is spread over all classes.
    """

    attack: Attack = field(default_factory=_default_attack)
    source: Source = field(default_factory=Target)
    label_smoothing: float = 0.0

    def __post_init__(self) -> None:
        within("label_smoothing", self.label_smoothing, 0, 1)

    def __call__(self, model: DefendedClassifier, images: Tensor, labels: Tensor, rng: Rng) -> tuple[Tensor, Tensor]:
        adversarial = self.attack(self.source(model).to(images.device), images, labels, rng.fold("inner attack"))
        logits = model(adversarial, rng)
        return F.cross_entropy(logits, labels, reduction="none", label_smoothing=self.label_smoothing), logits


def _trades_attack() -> ProjectedGradient:
    return ProjectedGradient(steps=10, step_size=0.007, objective=KLDivergence())


@dataclass(frozen=True)
class TRADES(TrainingObjective):
    """CE(f(x), y) + beta max_{x'} KL(f(x) || f(x')) (Zhang et al. 2019, eq. 5).

    Clean and adversarial images see the same draws of a random defense, so the KL term measures the attack alone.
    Batch norm is in evaluation mode while the images are crafted and in training mode for the loss.

    Args:
        beta: weight of the robust term (1 / lambda in the paper).
        attack: the inner maximisation; its objective should be KLDivergence.
        source: what the inner attack differentiates; IdentityBackward to train through a defense.
    """

    beta: float = 6.0
    attack: Attack = field(default_factory=_trades_attack)
    source: Source = field(default_factory=Target)

    def __post_init__(self) -> None:
        at_least("beta", self.beta, 0)
        objective = getattr(self.attack, "objective", None)
        if not isinstance(objective, KLDivergence):
            raise OptionError("attack.objective", type(objective).__name__, "TRADES maximises KLDivergence")

    def __call__(self, model: DefendedClassifier, images: Tensor, labels: Tensor, rng: Rng) -> tuple[Tensor, Tensor]:
        adversarial = self.attack(self.source(model).to(images.device), images, labels, rng.fold("inner attack"))
        clean = model(images, rng)
        robust = model(adversarial, rng)
        divergence = F.kl_div(robust.log_softmax(dim=1), clean.softmax(dim=1), reduction="none").sum(dim=1)
        return F.cross_entropy(clean, labels, reduction="none") + self.beta * divergence, clean
