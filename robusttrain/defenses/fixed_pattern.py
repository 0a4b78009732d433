"""One fixed pattern of the randomization layers, for the attacks and defenses of [P4 sections 4.4
to 4.6].
"""

from __future__ import annotations

from typing import Literal

import torch
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
        size: side after resizing, in pixels; None resizes nothing.
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
        size = images.shape[-1] if self.size is None else self.size
        room = self.canvas - size
        if room < 0:
            raise UserError(
                f"images of {size} pixels do not fit into canvas = {self.canvas} without resizing:"
                " give size, or a larger canvas"
            )
        vertical, _, horizontal = self.position.partition("-")
        top = {"top": 0, "bottom": room}.get(vertical, room // 2)
        left = {"left": 0, "right": room}.get(horizontal, room // 2)

        def of_all(value: int) -> Tensor:
            return torch.full((len(images),), value, dtype=torch.int64, device=images.device)

        return resize_and_pad(
            images, of_all(size), of_all(top), of_all(left), self.canvas, self.mode
        )
