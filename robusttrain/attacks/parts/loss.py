"""The function of the image that an attack climbs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn

from robusttrain.attacks.asking import loss_terms
from robusttrain.attacks.parts.objectives import Objective, repeated
from robusttrain.core.rng import Rng


class LossFn(Protocol):
    """From images to one loss per image, never reduced over the batch.

    An estimator may stack copies of the batch to evaluate them at once: images (n * B, C, H, W),
    streams (n * B,), result (n * B,), copy after copy in the order of the batch.
    """

    def __call__(self, images: Tensor, rng: Rng) -> Tensor: ...


@dataclass(frozen=True)
class Loss:
    """objective(model(images), goal), the loss that most attacks climb.

    For an ensemble that fuses losses, the weighted sum over its members.

    Args:
        model: images (n * B, C, H, W) in [0, 1] to logits (n * B, K).
        objective: what to maximise.
        goal: (B, ...), what ``objective.aim`` returned for the batch; repeated for stacked copies.
    """

    model: nn.Module
    objective: Objective
    goal: Tensor

    def __call__(self, images: Tensor, rng: Rng) -> Tensor:
        copies = len(images) // max(1, len(self.goal))
        goal = self.goal if copies <= 1 else repeated(self.goal, copies)
        losses = [
            weight
            * self.objective(logits.to(torch.promote_types(logits.dtype, torch.float32)), goal)
            for weight, logits in loss_terms(self.model, images, rng)
        ]
        return losses[0] if len(losses) == 1 else torch.stack(losses).sum(dim=0)
