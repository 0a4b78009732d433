"""Randomization layers: random resizing, then random padding [P4 section 3.2.1]."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from robusttrain.core.checked import Count, Share, checked
from robusttrain.core.errors import OptionError
from robusttrain.core.resize import Position, resize_and_pad
from robusttrain.core.rng import Rng
from robusttrain.defenses.fixed_pattern import FixedResizePad
from robusttrain.models.defense import Defense


@checked
class RandomResizePad(Defense):
    """Resize to r x r, r uniform in [low, canvas), and pad with zeros to canvas x canvas at a
    random place.

    Every image of the batch has its own size and place, in one batched operation that equals
    ``interpolate`` and ``pad``. The paper's 299 -> [299, 331) gives sum over r of (331 - r + 1)^2 =
    12,528 patterns [P4 4.1].

    Args:
        low: least side after resizing, in pixels.
        canvas: side of the result, in pixels; the classifier must take images of this size.
        mode: "bilinear" or "nearest".
        flip: probability that an image is mirrored; 0.5 in the paper's entry to the challenge [P4
            5.1].
    """

    random = True
    draws_patterns = True

    def __init__(
        self,
        low: Count = 299,
        canvas: int = 331,
        mode: Literal["bilinear", "nearest"] = "bilinear",
        flip: Share = 0.0,
    ) -> None:
        super().__init__()
        if canvas <= low:
            raise OptionError("canvas", canvas, f"must be greater than low = {low}")
        self.low, self.canvas, self.flip = low, canvas, flip
        self.sides = range(low, canvas)
        self.mode: Literal["bilinear", "nearest"] = mode

    def pattern(self, size: int | None, position: Position) -> FixedResizePad:
        return FixedResizePad(self.canvas, size, position, self.mode)

    def transform(self, images: Tensor, rng: Rng) -> Tensor:
        sizes = rng.integers((), self.low, self.canvas)
        top = rng.integers((), 0, self.canvas - sizes + 1)
        left = rng.integers((), 0, self.canvas - sizes + 1)
        if self.flip:
            mirrored = rng.uniform(()) < self.flip
            images = torch.where(mirrored[:, None, None, None], images.flip(-1), images)
        return resize_and_pad(images, sizes, top, left, self.canvas, self.mode)
