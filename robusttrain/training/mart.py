"""MART: adversarial training that weighs misclassified images (Wang et al. 2020)."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor

from robusttrain.attacks import Attack, AwayFromPrediction, KLDivergence, Source, Target
from robusttrain.core.checked import NonNegative, checked
from robusttrain.core.errors import OptionError
from robusttrain.core.rng import Rng
from robusttrain.models.defended import DefendedClassifier
from robusttrain.training.crafting import BatchNormMode, judge
from robusttrain.training.objectives import TrainingObjective, default_attack, goals, kl_divergence


@checked
@dataclass(frozen=True)
class MART(TrainingObjective):
    """BCE(f(x'), y) + lambda KL(f(x) || f(x')) (1 - p_y(x)) (Wang et al. 2020, eq. 11).

    BCE(f(x'), y) = -log p_y(x') - log(1 - max_{k != y} p_k(x')) (eq. 8) asks for a margin; the
    weight 1 - p_y(x) makes the KL term count where the clean image is misclassified, or nearly so.
    Both terms need labels: x' is crafted against them (eq. 12). Both are computed from logits; the
    released code adds constants to keep logarithms finite, and starts to craft at the image plus
    0.001 times a standard normal, where this class starts at a uniform point of the ball.

    Args:
        weight: lambda. 6 is the default of the released loss; the released ResNet-18 script passes
            5.
        attack: the inner maximisation, of the loss on the labels.
        source: what the inner attack differentiates; IdentityBackward to train through a defense.
        batch_norm: batch norm's mode while the images are crafted, "eval" (as the released code) or
            "train"; for the loss the mode is always "train".
    """

    takes_mixed_labels = False

    weight: NonNegative = 6.0
    attack: Attack = field(default_factory=default_attack)
    source: Source = field(default_factory=Target)
    batch_norm: BatchNormMode = "eval"

    def __post_init__(self) -> None:
        for goal in goals(self.attack):
            if isinstance(goal, KLDivergence | AwayFromPrediction):
                why = "it does not look at labels, and MART crafts against them"
                fix = f"{why}: give CrossEntropy, or take --training trades"
                raise OptionError("attack.objective", type(goal).__name__, fix)

    @property
    def passes(self) -> int:
        return 2

    def losses(
        self, model: DefendedClassifier, images: Tensor, crafted: Tensor, labels: Tensor, rng: Rng
    ) -> tuple[Tensor, Tensor]:
        clean = model(images, rng)
        robust = model(crafted, rng)
        judge(robust, labels)
        unsure = 1 - clean.softmax(dim=1).gather(1, labels[:, None]).squeeze(1)
        return boosted_cross_entropy(robust, labels) + self.weight * kl_divergence(
            clean, robust
        ) * unsure, clean


def boosted_cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """(B,): -log p_y - log(1 - max_{k != y} p_k) of logits (B, K) and labels (B,) (Wang et al.
    2020, eq. 8).
    """
    # In bfloat16 the difference of two logarithms this close would be mostly rounding.
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    likeliest = logits.detach().scatter(1, labels[:, None], -torch.inf).argmax(dim=1, keepdim=True)
    # 1 - p_k is the probability of all other classes together.
    others = logits.scatter(1, likeliest, -torch.inf).logsumexp(dim=1)
    return F.cross_entropy(logits, labels, reduction="none") + logits.logsumexp(dim=1) - others
