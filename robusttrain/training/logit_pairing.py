"""Adversarial logit pairing, as its released code does it (Kannan et al. 2018)."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor

from robusttrain.attacks import Attack, ProjectedGradient, Source, Target, TargetedCrossEntropy
from robusttrain.core.checked import NonNegative, Share, checked
from robusttrain.core.rng import Rng
from robusttrain.models.defended import DefendedClassifier
from robusttrain.training.crafting import BatchNormMode, judge
from robusttrain.training.objectives import TrainingObjective


def _least_likely() -> ProjectedGradient:
    return ProjectedGradient(
        steps=10, step_size=0.007, objective=TargetedCrossEntropy("least_likely")
    )


@checked
@dataclass(frozen=True)
class LogitPairing(TrainingObjective):
    """(CE(z, y) + CE(z', y)) / 2 + w mean_k (z_k - z'_k)^2, z = f(x), z' = f(x') (Kannan et al.
    2018, section 3).

    The released code (tensorflow/models, research/adversarial_logit_pairing) minimises cross
    entropy, with label smoothing, over one batch of clean and adversarial images together
    (mixed-minibatch PGD), plus the mean squared difference of their logits; its example crafts
    towards the least likely class. This loss alone holds back gradients more than attacks (Engstrom
    et al. 2018): judge it by the suite ``worst-case``.

    Clean and adversarial images see the same draws of a random defense.

    Args:
        weight: w, 0.5 in the released code's example.
        attack: the inner maximisation.
        source: what the inner attack differentiates; IdentityBackward to train through a defense.
        label_smoothing: share of the target distribution that is spread over all classes, 0.1 in
            the released code.
        batch_norm: batch norm's mode while the images are crafted, "eval" or "train"; for the loss
            the mode is always "train".
    """

    weight: NonNegative = 0.5
    attack: Attack = field(default_factory=_least_likely)
    source: Source = field(default_factory=Target)
    label_smoothing: Share = 0.1
    batch_norm: BatchNormMode = "eval"

    @property
    def passes(self) -> int:
        return 2

    def losses(
        self, model: DefendedClassifier, images: Tensor, crafted: Tensor, labels: Tensor, rng: Rng
    ) -> tuple[Tensor, Tensor]:
        # One pass over both, so that batch norm sees them together, as in the released code.
        both = model(torch.cat([images, crafted]), Rng(rng.keys.repeat(2), rng.position))
        clean, robust = both.chunk(2)
        judge(robust, labels)
        crossed = [
            F.cross_entropy(logits, labels, reduction="none", label_smoothing=self.label_smoothing)
            for logits in (clean, robust)
        ]
        return (crossed[0] + crossed[1]) / 2 + self.weight * (clean - robust).square().mean(
            dim=1
        ), clean
