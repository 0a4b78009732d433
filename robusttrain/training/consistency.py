"""Consistency: two draws of a random defense shall agree on every image."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

import torch.nn.functional as F
from torch import Tensor

from robusttrain.attacks import Attack, Source, Target
from robusttrain.core.checked import NonNegative, Positive, Share, checked
from robusttrain.core.errors import UserError, one_of
from robusttrain.core.rng import Rng
from robusttrain.models.defended import DefendedClassifier
from robusttrain.training.crafting import BatchNormMode, judge
from robusttrain.training.objectives import TrainingObjective, kl_divergence

Distance = Literal["jensen_shannon", "symmetric_kl"]


@checked
@dataclass(frozen=True)
class Consistency(TrainingObjective):
    """(CE(z_1, y) + CE(z_2, y)) / 2 + w D(p_1, p_2), z_1 and z_2 under two draws of the defense.

    The regulariser of Tack et al. 2022 (eq. 3: Jensen-Shannon between tempered predictions), with
    two draws of g in place of two augmentations. With an attack, both draws see the same
    adversarial image, crafted under a third draw.

    Args:
        weight: w, 1 in that paper.
        distance: D: "jensen_shannon", KL(p_1 || m) / 2 + KL(p_2 || m) / 2 with m = (p_1 + p_2) / 2;
            or "symmetric_kl", (KL(p_1 || p_2) + KL(p_2 || p_1)) / 2.
        temperature: logits are divided by it before D, 0.5 in that paper.
        attack: the inner maximisation; None trains on the images as they are.
        source: what the inner attack differentiates; IdentityBackward to train through a defense.
        label_smoothing: share of the target distribution that is spread over all classes.
        batch_norm: batch norm's mode while the images are crafted, "eval" or "train"; for the loss
            the mode is always "train".
    """

    weight: NonNegative = 1.0
    distance: Distance = "jensen_shannon"
    temperature: Positive = 0.5
    attack: Attack | None = None
    source: Source = field(default_factory=Target)
    label_smoothing: Share = 0.0
    batch_norm: BatchNormMode = "eval"

    def __post_init__(self) -> None:
        one_of("distance", self.distance, ("jensen_shannon", "symmetric_kl"))

    @property
    def passes(self) -> int:
        return 2

    def check(self, model: DefendedClassifier) -> None:
        if not model.random:
            raise UserError(
                "training.objective = Consistency: two draws of a defense that draws nothing are"
                " the same; give --defense advtransform or randomization, or another --training"
            )
        super().check(model)

    def losses(
        self, model: DefendedClassifier, images: Tensor, crafted: Tensor, labels: Tensor, rng: Rng
    ) -> tuple[Tensor, Tensor]:
        first, second = (model(crafted, rng.fold(f"draw {number}")) for number in (1, 2))
        if self.attack is not None:
            judge(first, labels)
        crossed = [
            F.cross_entropy(logits, labels, reduction="none", label_smoothing=self.label_smoothing)
            for logits in (first, second)
        ]
        apart = distance(first / self.temperature, second / self.temperature, self.distance)
        return (crossed[0] + crossed[1]) / 2 + self.weight * apart, first


def distance(first: Tensor, second: Tensor, kind: Distance) -> Tensor:
    """(B,): the distance between the distributions of two sets of logits (B, K); see
    `Consistency.distance`.
    """
    if kind == "symmetric_kl":
        return (kl_divergence(first, second) + kl_divergence(second, first)) / 2
    # The logarithm of a mean of probabilities is a distribution's logits again.
    mean = first.log_softmax(dim=1).logaddexp(second.log_softmax(dim=1))
    return (kl_divergence(first, mean) + kl_divergence(second, mean)) / 2
