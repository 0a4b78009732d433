"""One fixed pattern of the randomization layers, for the attacks and defenses of [P4 sections 4.4
to 4.6].
"""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from robusttrain.core.checked import Count, checked
from robusttrain.core.errors import OptionError, UserError
from robusttrain.core.resize import Position, resize_and_pad
from robusttrain.core.rng import Rng
from robusttrain.models.defense import Defense


@checked
class FixedResizePad(Defense):
    """Resize to one size and pad with zeros to canvas x canvas at one place, without randomness.

    Args:
        canvas: side of the result, in pixels.
        size: side after resizing, in pixels; None resizes nothing, and images that are not square
            stay so.
        position: where the resized image stands: a corner, or "center" (one pixel nearer to the top
            left if the room is odd).
        mode: "bilinear" or "nearest".
    """

    def __init__(
        self,
        canvas: Count = 331,
        size: int | None = None,
        position: Position = "center",
        mode: Literal["bilinear", "nearest"] = "bilinear",
    ) -> None:
        super().__init__()
        if size is not None and not 1 <= size <= canvas:
            raise OptionError("size", size, f"must lie between 1 and canvas = {canvas}")
        self.canvas, self.size, self.position = canvas, size, position
        self.mode: Literal["bilinear", "nearest"] = mode

    def pattern(self, size: int | None, position: Position) -> FixedResizePad:
        return FixedResizePad(self.canvas, size, position, self.mode)

    def transform(self, images: Tensor, rng: Rng) -> Tensor:
        height, width = images.shape[-2:] if self.size is None else (self.size, self.size)
        if max(height, width) > self.canvas:
            raise UserError(
                f"images of {max(height, width)} pixels do not fit into canvas = {self.canvas}"
                " without resizing: give size, or a larger canvas"
            )
        below, beside = self.canvas - height, self.canvas - width
        vertical, _, horizontal = self.position.partition("-")
        top = {"top": 0, "bottom": below}.get(vertical, below // 2)
        left = {"left": 0, "right": beside}.get(horizontal, beside // 2)
        if height != width:  # resizing to a square would squash them
            return F.pad(images, (left, beside - left, top, below - top))

        def of_all(value: int) -> Tensor:
            return torch.full((len(images),), value, dtype=torch.int64, device=images.device)

        return resize_and_pad(
            images, of_all(height), of_all(top), of_all(left), self.canvas, self.mode
        )
