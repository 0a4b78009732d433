"""Resizing and padding of whole batches, each image with its own size and place, in two matrix
products.

Bilinear and nearest-neighbour resizing are linear in the image and separable, so resizing to r x r
and placing the result in a zero canvas is ``rows @ image @ columns.T`` with matrices that differ
from image to image. The result equals ``interpolate`` followed by ``pad`` up to rounding, is
differentiable, and needs no loop over images.
"""

from __future__ import annotations

from typing import Literal, get_args

import torch
from torch import Tensor

#: Where a resized image may stand in its padding.
Position = Literal["top-left", "top-right", "bottom-left", "bottom-right", "center"]
POSITIONS: tuple[Position, ...] = get_args(Position)


def _matrix(side: int, sizes: Tensor, offsets: Tensor, canvas: int, mode: str) -> Tensor:
    """(B, canvas, side) weights that resize a line of ``side`` pixels to ``sizes`` and place it at
    ``offsets``.
    """
    # Index within the resized line
    place = torch.arange(canvas, device=sizes.device)[None] - offsets[:, None]
    inside = (place >= 0) & (place < sizes[:, None])
    scale = side / sizes.double()[:, None]
    pixels = torch.arange(side, device=sizes.device)
    if mode == "nearest":
        # In float32, as torch's interpolate, to pick the same pixel where a product falls between
        # two pixels.
        ratio = torch.full_like(scale, side, dtype=torch.float32) / sizes.float()[:, None]
        nearest = (place.float() * ratio).floor().clamp(0, side - 1).long()
        weights = (nearest[..., None] == pixels).float()
    else:
        # Half-pixel centres, as torch's interpolate(align_corners=False); places beyond the edge
        # take the edge's pixel.
        centre = ((place.double() + 0.5) * scale - 0.5).clamp(0, side - 1)
        weights = (1 - (centre[..., None] - pixels).abs()).clamp_min(0).float()
    return weights * inside[..., None]


def resize_and_pad(
    images: Tensor, sizes: Tensor, top: Tensor, left: Tensor, canvas: int, mode: str
) -> Tensor:
    """Resize image i to sizes[i] x sizes[i] and place it at (top[i], left[i]) of a black square.

    Args:
        images: (B, C, H, W), pixel values in [0, 1].
        sizes: (B,) int64, side of each resized image, in pixels, at most ``canvas``.
        top: (B,) int64, rows of padding above.
        left: (B,) int64, columns of padding to the left.
        canvas: side of the result, in pixels.
        mode: "bilinear" or "nearest".

    Returns:
        (B, C, canvas, canvas).
    """
    rows = _matrix(images.shape[-2], sizes, top, canvas, mode)
    columns = _matrix(images.shape[-1], sizes, left, canvas, mode)
    # Autocast would round pixels to bfloat16, which is meant for activations
    with torch.autocast(images.device.type, enabled=False):
        resized = torch.einsum("bih,bchw,bjw->bcij", rows, images.float(), columns)
    return resized.contiguous(memory_format=torch.channels_last)
