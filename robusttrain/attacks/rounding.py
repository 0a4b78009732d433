"""Adversarial images in a type that is shorter than the one in which an attack computes.

An image that has just crossed the boundary of its class may fall back when it is rounded. So each
image is rounded towards its clean image first, which never leaves a ball; where the model then
answers rightly again, to the nearest number of the type, and then away from the clean image, as far
as the threat allows.
"""

from __future__ import annotations

import torch
from torch import Tensor

from robusttrain.attacks.asking import Queried
from robusttrain.attacks.parts.threats import Threat, inside, per_image


def narrowed(
    source: Queried,
    adversarial: Tensor,
    images: Tensor,
    labels: Tensor,
    threat: Threat,
    dtype: torch.dtype,
) -> Tensor:
    """Adversarial images in a shorter type, inside the threat, and wrong where they were wrong if
    the type has such an image.

    Args:
        source: the attacked model, prepared. One that is `random` is not asked: its answers say
            little about one image.
        adversarial: (B, C, H, W), what the attack found.
        images: (B, C, H, W), the clean images, which the shorter type holds exactly.
        labels: (B,).
        threat: of the attack.
        dtype: the shorter type.
    """
    towards = _moved(adversarial, images, dtype, away=False)
    if source.random:
        return towards
    lost = _right(source, towards.to(images.dtype), labels)
    if lost.any():
        lost &= ~_right(source, adversarial, labels)
    for candidate in (adversarial.to(dtype), _moved(adversarial, images, dtype, away=True)):
        if not lost.any():
            break
        wide = candidate.to(images.dtype)
        fits = ((wide - images).abs() <= threat.epsilon) & (wide >= 0) & (wide <= 1)
        mixed = torch.where(fits, candidate, towards)
        wide = mixed.to(images.dtype)
        taken = lost & inside(threat, wide, images) & ~_right(source, wide, labels)
        towards = torch.where(per_image(taken), mixed, towards)
        lost &= ~taken
    return towards


def _right(source: Queried, images: Tensor, labels: Tensor) -> Tensor:
    """(B,): whether the model answers rightly."""
    with torch.no_grad():
        return source(images).argmax(dim=1) == labels


def _moved(adversarial: Tensor, images: Tensor, dtype: torch.dtype, away: bool) -> Tensor:
    """Adversarial images rounded towards their clean images, or away from them."""
    change = (adversarial - images).abs()
    rounded = adversarial.to(dtype)
    moved = (rounded.to(adversarial.dtype) - images).abs()
    # One unit in the last place, or more
    unit = torch.finfo(dtype).eps * adversarial.abs().clamp_min(torch.finfo(dtype).tiny)
    if away:
        further = adversarial - unit * (images - adversarial).sign()
        return torch.where(moved < change, further.to(dtype), rounded)
    nearer = adversarial + unit * (images - adversarial).sign()
    nearer = torch.where(change <= unit, images, nearer)
    return torch.where(moved > change, nearer.to(dtype), rounded)
