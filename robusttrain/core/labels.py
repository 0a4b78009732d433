"""Labels as every attack, evaluation and training takes them: class numbers (B,) in int64."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from robusttrain.core.errors import UserError, show


def too_high(low: int, high: int, classes: int) -> str:
    """The message where a label has no logit."""
    return (
        f"labels: class numbers must lie in 0..{classes - 1}, since there are {classes} classes;"
        f" got {low}..{high}" + (": subtract 1" if low > 0 and high == classes else "")
    )


def as_labels(labels: Any) -> Tensor:
    """Labels as a tensor, from whatever torch makes one of: lists, arrays of numpy.

    Raises:
        UserError: there are others among them, such as names of classes.
    """
    try:
        return torch.as_tensor(labels)
    except (TypeError, ValueError, RuntimeError) as error:
        first = labels[0] if isinstance(labels, list | tuple) and labels else labels
        raise UserError(
            f"labels: expected class numbers, got {show(first)}: give each class its number, 0..K-1"
        ) from error


def check_labels(labels: Any, images: Tensor, classes: int | None = None) -> Tensor:
    """Labels (B,) in int64 on the images' device, from whole numbers of any type.

    Args:
        labels: (B,), a tensor or what `as_labels` takes.
        images: (B, C, H, W), the images with these labels.
        classes: K; None while it is unknown.

    Raises:
        UserError: another shape, fractions, or numbers outside 0..K-1; the error names their
            range.
    """
    return labels_and_range(labels, images, classes)[0]


def labels_and_range(
    labels: Any, images: Tensor, classes: int | None = None
) -> tuple[Tensor, tuple[int, int]]:
    """`check_labels`, and the lowest and the highest label, (0, 0) without any.

    The host waits for the device once.
    """
    labels = as_labels(labels)
    if labels.dtype in (torch.uint16, torch.uint32, torch.uint64):  # torch compares none of these
        labels = labels.to(torch.int64)
    if labels.shape != images.shape[:1]:
        raise UserError(
            f"labels: expected one per image, ({len(images)},), got {tuple(labels.shape)}"
            + _mend(labels, images)
        )
    if labels.is_complex():
        raise UserError(f"labels: expected class numbers, got {labels.dtype}")
    if not len(labels):
        return labels.to(images.device, torch.int64), (0, 0)
    low, high = torch.stack(torch.aminmax(labels)).tolist()
    if labels.is_floating_point() and not (labels.frac() == 0).all():  # infinity has no fraction
        raise UserError(f"labels: expected class numbers, got fractions in [{low:.3g}, {high:.3g}]")
    low, high = int(low), int(high)
    if low < 0:
        signs = (low, high) == (-1, 1) and not (labels == 0).any()
        fix = "give (labels + 1) // 2" if signs else "leave out images that have no label"
        raise UserError(f"labels: class numbers must not be negative, got {low}..{high}: {fix}")
    if classes is not None and high >= classes:
        raise UserError(too_high(low, high, classes))
    return labels.to(images.device, torch.int64), (low, high)


def _mend(labels: Tensor, images: Tensor) -> str:
    """What turns labels of another shape into class numbers, if that can be seen."""
    if labels.dim() != 2 or len(labels) != len(images) or not labels.numel():
        return ""
    if labels.shape[1] == 1:
        return ": give labels[:, 0]"
    one_hot = (labels.sum(dim=1) == 1).all() and ((labels == 0) | (labels == 1)).all()
    return ": give labels.argmax(dim=1)" if one_hot else ""
