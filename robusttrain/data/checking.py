"""What a data set reads, looked at before anything rests on it."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from robusttrain.core.errors import UserError
from robusttrain.core.labels import as_labels, check_labels
from robusttrain.data.image_files import ImageFiles


def checked_split(
    read: Any, who: str, split: str, classes: int, channels: int, size: int
) -> tuple[Tensor | ImageFiles, Tensor, list[str]]:
    """Images (N, C, H, W), labels (N,) int64 and names of the classes, of what ``_read`` returned.

    Args:
        read: the return value.
        who: the data set's class, for errors.
        split: that was read.
        classes, channels, size: as its ``facts`` say.

    Raises:
        UserError: anything that does not go together, or does not agree with the facts.
    """
    said = f"data: {who}._read({split!r})"
    if not isinstance(read, tuple | list) or len(read) != 3:
        got = f"{type(read).__name__}{f' of {len(read)}' if isinstance(read, tuple | list) else ''}"
        raise UserError(f"{said} must return images, labels and names of the classes, not a {got}")
    images, labels, names = read
    if isinstance(images, np.ndarray):
        images = torch.as_tensor(images)
    if not isinstance(images, Tensor | ImageFiles):
        raise UserError(
            f"{said}: images are a {type(images).__name__}: return a tensor of bytes (N, C, H, W),"
            " or ImageFiles"
        )
    labels = as_labels(labels)
    if not len(images):
        raise UserError(f"{said}: there is no image")
    if isinstance(images, Tensor):
        images = _pixels(images, said, channels, size)
    if labels.shape != (len(images),) and len(labels.shape) <= 1:
        raise UserError(f"{said}: {len(images)} images, and {labels.numel()} labels")
    try:
        labels = check_labels(labels, images if isinstance(images, Tensor) else labels, classes)
    except UserError as error:
        raise UserError(f"{said}: {error}") from error
    names = [str(name) for name in names]
    if len(names) != classes:
        raise UserError(f"{said}: {len(names)} names, and facts() says {classes} classes")
    return images, labels.cpu(), names


def _pixels(images: Tensor, said: str, channels: int, size: int) -> Tensor:
    """The images, if they are (N, C, H, W) with values that leave no doubt."""
    shape = tuple(images.shape)
    # Images that are not square are known by either side.
    if len(shape) != 4 or shape[1] != channels or size not in shape[2:]:
        raise UserError(
            f"{said}: images are {shape}, and facts() says {channels} x {size} x {size}:"
            " channels come first, (N, C, H, W)"
        )
    if images.dtype in (torch.uint8, torch.bool):
        return images
    kind = str(images.dtype).removeprefix("torch.")
    low, high = (float(end) for end in torch.aminmax(images))
    # What rounding leaves outside [0, 1], as resizing does, attacks clamp.
    off = max(1e-6, torch.finfo(images.dtype).eps) if images.is_floating_point() else 0
    if not (low >= -off and high <= (1 + off if images.is_floating_point() else 255)):  # nor NaN
        raise UserError(
            f"{said}: images are {kind} in [{low:.3g}, {high:.3g}]: values must lie in [0, 1], or"
            " be bytes from 0 to 255: normalise inside the model"
        )
    return images if images.is_floating_point() else images.to(torch.uint8)
