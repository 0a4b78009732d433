"""The anti-adversary [Alfarra et al. 2022]: before classification, each image becomes one of which
the classifier is more certain.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor

from robusttrain.attacks.algorithms.projected_gradient import ProjectedGradient
from robusttrain.attacks.parts.objectives import AwayFromPrediction
from robusttrain.attacks.parts.threats import Linf
from robusttrain.core.checked import Positive, Whole, checked
from robusttrain.defenses.classifier_search import ClassifierSearch

#: The paper projects nothing: K steps end where they end.
NO_BOUND = 1000.0


@dataclass(frozen=True)
class TowardsPrediction(AwayFromPrediction):
    """log softmax(z)_c, where c is the class that the model predicts on the image itself."""

    def __call__(self, logits: Tensor, goal: Tensor) -> Tensor:
        return -F.cross_entropy(logits, goal, reduction="none")


@checked
class AntiAdversary(ClassifierSearch):
    """g(x) = x + gamma_K, with the classifier f that stands behind g [Algorithm 1]:

        gamma_0 = 0,  gamma_k = gamma_{k-1} - alpha sign grad loss(f(x + gamma_{k-1}), argmax f(x)).

    f is so certain at g(x) that its gradient there says little, and attackers who take it (BPDA-I)
    find less than those who leave g out of account.

    Args:
        steps: K.
        step_size: alpha, in pixel values.
        clip: whether g(x) is clipped to [0, 1] after each step; the paper does not clip.
    """

    def __init__(self, steps: Whole = 2, step_size: Positive = 0.15, clip: bool = False) -> None:
        super().__init__(
            ProjectedGradient(
                steps=steps,
                step_size=step_size,
                random_start=False,
                threat=Linf(NO_BOUND, clip=clip),
                objective=TowardsPrediction(),
            )
        )
