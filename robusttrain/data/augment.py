"""Augmentation of whole batches of tensors, on their own device."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from robusttrain.core.rng import Rng


def crop_and_flip(images: Tensor, rng: Rng, padding: int, flip: bool) -> Tensor:
    """A random crop of each image within a border of zeros, mirrored left to right half of the
    time.

    Args:
        images: (B, C, H, W), of any type.
        rng: one stream per image; each image has draws of its own, whatever else is in the batch.
        padding: width of the border, in pixels; 0 leaves the images where they are.
        flip: whether to mirror.

    Returns:
        (B, C, H, W), of the same type.
    """
    if not (padding or flip):
        return images
    batch, channels, height, width = images.shape
    # Offsets and mirroring are always drawn, so neither depends on whether the other is used.
    offsets = rng.integers((2, 1), 0, 2 * padding + 1)
    mirrored = rng.uniform((1,)) < (0.5 if flip else 0.0)
    rows = torch.arange(height, device=images.device) + offsets[:, 0]
    columns = torch.arange(width, device=images.device)
    columns = torch.where(mirrored, columns.flip(0), columns) + offsets[:, 1]
    # One gather on flattened pixels, which was 3.5 times as fast as indexing rows and columns (CPU,
    # 128 x 3 x 32 x 32).
    pixels = rows[:, :, None] * (width + 2 * padding) + columns[:, None, :]
    padded = F.pad(images, [padding] * 4).flatten(2)
    return padded.gather(2, pixels.view(batch, 1, -1).expand(-1, channels, -1)).view_as(images)
