"""Whether a model is random, found out by asking it."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from robusttrain.attacks.loss import call_model
from robusttrain.attacks.queries import is_random
from robusttrain.rng import Rng


def ask_twice(model: nn.Module, images: Tensor, rng: Rng) -> tuple[Tensor, Tensor]:
    """Two forward passes with different draws: what the model says, and whether it says the same again.

    No flag can be trusted here: any ``nn.Module`` may draw from torch's global generator. An attack that has found
    one misclassified draw has won against a model that repeats itself, and has perhaps only been lucky against others.

    Args:
        model: prepared for attack.
        images: (B, C, H, W), pixel values in [0, 1].
        rng: streams of the images, (B,).

    Returns:
        Mean logits (B, K) of both passes, float32 or wider, and (B,) bool: whether the passes differ for that image.
    """
    with torch.no_grad():
        first, second = (call_model(model, images, rng.fold(draw)) for draw in range(2))
    # NaN differs from itself, but a model that always answers NaN is not random.
    differ = (first != second) & ~(first.isnan() & second.isnan())
    dtype = torch.promote_types(first.dtype, torch.float32)
    return (first.to(dtype) + second.to(dtype)) / 2, differ.any(dim=1)


def ask_or_believe(model: nn.Module, images: Tensor, rng: Rng) -> tuple[Tensor, Tensor]:
    """`ask_twice`, where a model that says that it is random is believed: two draws in a row may agree by chance.

    Arguments and results as there.
    """
    logits, differ = ask_twice(model, images, rng)
    return logits, differ | is_random(model)
