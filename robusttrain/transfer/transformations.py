"""Transformations that adversarial images meet on their way: rotation, noise, blur, JPEG [P3 6.2,
figure 4].

``transformation(images, rng)`` takes images (B, C, H, W) in [0, 1] to such images, each on its own.
Randomness comes from the images' streams. The weakest setting changes nothing, except for JPEG,
which always rounds.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2 import functional as tv

from robusttrain.core.checked import NonNegative, checked
from robusttrain.core.errors import UserError, within
from robusttrain.core.rng import Rng

Transformation = Callable[[Tensor, Rng], Tensor]


@dataclass(frozen=True)
class Rotation:
    """Turns images about their centre, bilinear, with black corners.

    Args:
        angle: in degrees, counter-clockwise.
    """

    angle: float

    def __post_init__(self) -> None:
        within("angle", self.angle, -360, 360)

    def __call__(self, images: Tensor, rng: Rng) -> Tensor:
        turned: Tensor = tv.rotate(images, self.angle, interpolation=InterpolationMode.BILINEAR)
        return turned.clamp(0, 1)


@checked
@dataclass(frozen=True)
class GaussianNoise:
    """Adds N(0, sigma^2) to every pixel value, each image with its own noise, and clips to [0, 1].

    Args:
        sigma: standard deviation, for pixel values in [0, 1].
    """

    sigma: NonNegative

    def __call__(self, images: Tensor, rng: Rng) -> Tensor:
        return (images + self.sigma * rng.fold("transformation").normal(images.shape[1:])).clamp(
            0, 1
        )


@checked
@dataclass(frozen=True)
class GaussianBlur:
    """Blurs with a Gaussian kernel, cut off at three standard deviations; edges are mirrored.

    Args:
        radius: standard deviation of the kernel, in pixels (what PIL and the paper's axis call its
            radius).
    """

    radius: NonNegative

    def __call__(self, images: Tensor, rng: Rng) -> Tensor:
        # Mirroring needs a kernel that reaches less far than the image.
        reach = min(math.ceil(3 * self.radius), *(side - 1 for side in images.shape[-2:]))
        if not reach:
            return images
        blurred: Tensor = tv.gaussian_blur(images, [2 * reach + 1] * 2, [self.radius] * 2)
        return blurred.clamp(0, 1)


@dataclass(frozen=True)
class JPEG:
    """Rounds to 8 bits, encodes and decodes, by libjpeg itself, not a differentiable stand-in.

    Args:
        quality: 1 (worst) to 100.
    """

    quality: int

    def __post_init__(self) -> None:
        within("quality", self.quality, 1, 100)

    def __call__(self, images: Tensor, rng: Rng) -> Tensor:
        if images.shape[1] not in (1, 3):
            raise UserError(f"JPEG takes grey or RGB images, got {images.shape[1]} channels")
        bytes_ = (images.clamp(0, 1) * 255).round().to(torch.uint8).cpu()
        decoded: Tensor = tv.jpeg(bytes_, self.quality)
        return decoded.to(images.device, images.dtype) / 255
