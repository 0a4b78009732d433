"""Hedge defense [Wu et al. 2021]: before classification, each image is attacked on behalf of all
classes at once.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from robusttrain.attacks.algorithms.projected_gradient import ProjectedGradient
from robusttrain.attacks.parts.objectives import Objective
from robusttrain.attacks.parts.threats import Linf
from robusttrain.core.checked import NonNegative, Positive, Whole, checked
from robusttrain.core.rng import Rng
from robusttrain.defenses.classifier_search import ClassifierSearch


@dataclass(frozen=True)
class AllClasses(Objective):
    """-sum over classes c of log softmax(z)_c: the sum of the cross entropies, away from all
    classes. No labels.
    """

    def aim(self, model: nn.Module, images: Tensor, labels: Tensor | None, rng: Rng) -> Tensor:  # type: ignore[override]
        return torch.zeros(len(images), device=images.device)  # one for each image, and not used

    def __call__(self, logits: Tensor, goal: Tensor) -> Tensor:
        return -logits.log_softmax(dim=1).sum(dim=1)


@checked
class Hedge(ClassifierSearch):
    """g(x): projected gradient ascent of sum over c of loss(f(x'), c) on the classifier f behind g,
    within |x' - x|_inf <= radius, from a random point of that ball.

    Args:
        radius: in pixel values.
        steps: how many.
        step_size: in pixel values; 0.007 in the authors' code.
        random_start: whether the search begins at a random point; otherwise g is deterministic.
        clip: whether images are clipped to [0, 1] after each step, as in the authors' code.
    """

    def __init__(
        self,
        radius: NonNegative = 8 / 255,
        steps: Whole = 20,
        step_size: Positive = 0.007,
        random_start: bool = True,
        clip: bool = True,
    ) -> None:
        super().__init__(
            ProjectedGradient(
                steps=steps,
                step_size=step_size,
                random_start=random_start,
                threat=Linf(radius, clip=clip),
                objective=AllClasses(),
            )
        )
