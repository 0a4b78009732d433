"""Adversarial images that rounding alone takes back across the boundary of their class.

In a type that is shorter than the one in which an attack computes, an image that has just crossed
the boundary may fall back when it is rounded. So each image is rounded towards its clean image
first, which never leaves a ball; where the model then answers rightly again, to the nearest number
of the type, and then away from the clean image, as far as the threat allows.

In the same type the nearest adversarial image may fall back, too: a batch of another size, layers
that are folded, another kernel round logits differently. It is moved on along its ray.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from robusttrain.attacks.asking import Queried
from robusttrain.attacks.parts.threats import Threat, inside, per_image

#: The step on from a point where two rounded logits are equal: a share of the way so far, and a
#: least length. A linearised boundary goes through such a point.
BEYOND_TIE, LEAST_STEP = 0.05, 1e-3
#: How far beyond an image that fell back others are tried, as shares of its distance.
FARTHER = (1e-5, 1e-4, 1e-3, 1e-2)


def held_apart(
    found: Tensor, images: Tensor, threat: Threat, right: Callable[[Tensor], Tensor]
) -> Tensor:
    """(B, C, H, W): what an attack found, moved on along its ray by up to a hundredth where the
    model answers rightly and the threat leaves room.

    Args:
        found: (B, C, H, W), inside the threat.
        images: (B, C, H, W), the clean images; those that come back as they were stay.
        threat: of the attack.
        right: from points (B, C, H, W) to (B,) bool, whether the model answers rightly.
    """
    lost = (found != images).flatten(1).any(dim=1)
    if lost.any():
        lost &= right(found)
    for share in FARTHER:
        if not lost.any():
            break
        farther = torch.lerp(images, found, 1 + share).clamp(0, 1)
        tried = lost & inside(threat, farther, images)
        if tried.any():
            points = torch.where(per_image(tried), farther, found)
            fell = tried & ~right(points)
            found = torch.where(per_image(fell), points, found)
            lost &= ~fell
    return found


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
