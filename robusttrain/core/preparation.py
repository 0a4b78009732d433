"""How pictures of any size become the images that networks see."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, cast, get_args

#: Ways to compute pixels between pixels, by the names that Pillow, timm and torchvision share.
Interpolation = Literal["nearest", "bilinear", "bicubic", "lanczos"]


@dataclass(frozen=True)
class Preparation:
    """The shorter side of a picture is resized, and the square in the centre is cropped.

    Args:
        size: height and width in pixels of the square.
        resize: pixels that the shorter side is resized to, at least ``size``.
        interpolation: by which the picture is resized, antialiased.
    """

    size: int
    resize: int
    interpolation: Interpolation = "bicubic"

    def __str__(self) -> str:
        return f"resized to {self.resize} ({self.interpolation}) and cropped to {self.size}"


def preparation_as(size: int, resize: int, interpolation: str) -> Preparation | None:
    """What a library says of its weights; None where ours cannot do it."""
    if interpolation not in get_args(Interpolation) or resize < size:
        return None
    return Preparation(size, resize, cast(Interpolation, interpolation))
