"""The function of the image that an attack climbs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn

from robusttrain.attacks.asking import loss_terms
from robusttrain.attacks.parts.objectives import Objective, repeated
from robusttrain.core.errors import UserError
from robusttrain.core.rng import Rng


class LossFn(Protocol):
    """From images to one loss per image, never reduced over the batch.

    An estimator may stack copies of the batch to evaluate them at once: images (n * B, C, H, W),
    streams (n * B,), result (n * B,), copy after copy in the order of the batch.
    """

    def __call__(self, images: Tensor, rng: Rng) -> Tensor: ...


def each_image(objective: Objective, logits: Tensor, goal: Tensor) -> Tensor:
    """objective(logits, goal), (B,).

    Raises:
        UserError: the objective gives something else, as one that is reduced over the batch:
            attacks that compare losses would decide for all images at once.
    """
    losses = objective(logits, goal)
    if losses.shape != logits.shape[:1] or not losses.is_floating_point():
        raise UserError(
            f"objective {type(objective).__name__}: gave {losses.dtype} {tuple(losses.shape)} for"
            f" {len(logits)} images: give one float an image, as reduction='none' leaves them"
        )
    return losses


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
            * each_image(
                self.objective, logits.to(torch.promote_types(logits.dtype, torch.float32)), goal
            )
            for weight, logits in loss_terms(self.model, images, rng)
        ]
        return losses[0] if len(losses) == 1 else torch.stack(losses).sum(dim=0)
