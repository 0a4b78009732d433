"""Asking a model: with streams or without, for all its members, and whether its answers are random."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from robusttrain.core.rng import Rng


def call_model(model: nn.Module, images: Tensor, rng: Rng | None) -> Tensor:
    """``model(images, rng)`` for models that take their randomness from outside, ``model(images)`` for all others.

    Ours say so by ``takes_rng = True``; any other ``nn.Module`` is called as torch calls it.
    """
    logits: Tensor = model(images, rng) if getattr(model, "takes_rng", False) else model(images)
    return logits


def loss_terms(model: nn.Module, images: Tensor, rng: Rng | None) -> list[tuple[float, Tensor]]:
    """Weights and logits (B, K) whose losses add up to the loss: one of each, but for ensembles that fuse losses."""
    several = getattr(model, "loss_terms", None)
    return [(1.0, call_model(model, images, rng))] if several is None else several(images, rng)


def is_random(model: nn.Module) -> bool:
    """Whether two answers to one image may differ.

    Models that know say so by ``random``; of others, those that take streams of randomness are taken at their word.
    """
    return bool(getattr(model, "random", getattr(model, "takes_rng", False)))


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
