"""Convolutions of 3 x 3 pixels with fewer multiplications (Winograd), for fast copies on CPUs.

Lavin & Gray 2016, *Fast Algorithms for Convolutional Neural Networks*, section 4.3, F(4 x 4, 3 x
3): the image is cut into tiles of 6 x 6 pixels that overlap by two. A tile d and a kernel g are
transformed, multiplied number by number and summed over the channels, and transformed back,

    Y = A^T [ sum over channels of (G g G^T) * (B^T d B) ] A,

which takes 36 multiplications for 16 numbers of the output where the plain way takes 144. What is
saved has to pay for the transforms, so narrow layers and few tiles stay as they are. In float32
the output differs from the plain one by about 1e-5 of its largest number (the plain one's own
rounding: 1e-7).
"""

from __future__ import annotations

import platform
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

#: Fewest channels, of the input and of the output, with which it pays, also beside other work
#: (``benchmarks/winograd.py``).
CHANNELS = 192
#: Least channels of the input times those of the output times tiles of an image. Below, a layer
#: saves too little of a network's time to be worth another rounding.
WORK = 2**16
#: Fewest tiles, of all images together: the transformed kernels are read once for all of them.
TILES = 16
#: So many tiles are computed at once: they stay in the processor's cache.
AT_ONCE = 128
#: Where it was measured. Elsewhere torch's convolutions may do the same of their own accord.
PROCESSORS = ("x86_64", "amd64")

_plain: ContextVar[bool] = ContextVar("_plain", default=False)


@contextmanager
def plain_convolutions() -> Iterator[None]:
    """A context in which all convolutions are torch's own: to count or to compare them."""
    token = _plain.set(True)
    try:
        yield
    finally:
        _plain.reset(token)


@cache
@torch.inference_mode(False)  # an inference tensor would outlive its context here
def _transforms() -> tuple[Tensor, Tensor, Tensor]:
    """Those of a tile (36, 36), of a kernel (36, 9) and of what comes back (16, 36): B^T, G and A^T
    of the paper, for rows and columns at once.
    """
    tile = torch.tensor(
        [
            [4.0, 0, -5, 0, 1, 0],
            [0, -4, -4, 1, 1, 0],
            [0, 4, -4, -1, 1, 0],
            [0, -2, -1, 2, 1, 0],
            [0, 2, -1, -2, 1, 0],
            [0, 4, 0, -5, 0, 1],
        ]
    )
    kernel = torch.tensor(
        [[6.0, 0, 0], [-4, -4, -4], [-4, 4, -4], [1, 2, 4], [1, -2, 4], [0, 0, 24]],
        dtype=torch.float64,
    )
    back = torch.tensor(
        [[1.0, 1, 1, 1, 1, 0], [0, 1, -1, 2, -2, 0], [0, 1, 1, 4, 4, 0], [0, 1, -1, 8, -8, 1]]
    )
    rows_and_columns = [torch.kron(each, each) for each in (tile, kernel / 24, back)]
    return rows_and_columns[0], rows_and_columns[1].float(), rows_and_columns[2]


class Kernels:
    """Kernels (K, C, 3, 3) of a convolution, transformed when they are first asked for."""

    def __init__(self, weight: Tensor, turned: Kernels | None = None) -> None:
        self._weight, self._turned = weight, turned
        self._transformed: Tensor | None = None

    @property
    def turned(self) -> Kernels:
        """Those of the gradient: a convolution again, from the output to the input."""
        if self._turned is None:
            self._turned = Kernels(self._weight.flip(2, 3).transpose(0, 1), self)
        return self._turned

    @property
    def transformed(self) -> Tensor:
        """(36, C, K)."""
        if self._transformed is None:
            outputs, inputs = self._weight.shape[:2]
            flat = self._weight.permute(2, 3, 1, 0).reshape(9, -1)
            self._transformed = torch.mm(_transforms()[1], flat).view(36, inputs, outputs)
        return self._transformed


class _Convolution(torch.autograd.Function):
    """The convolution with a border of one pixel of zeros, of images alone: differentiable as often
    as one likes, but not with respect to its kernels.
    """

    @staticmethod
    def forward(ctx: Any, images: Tensor, kernels: Kernels) -> Tensor:
        ctx.kernels = kernels
        return _convolved(images, kernels.transformed)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        return _Convolution.apply(gradients[0], ctx.kernels.turned), None


def _convolved(images: Tensor, kernels: Tensor) -> Tensor:
    """(B, C, H, W) and transformed kernels (36, C, K) to (B, K, H, W), channels_last."""
    batch, inputs, height, width = images.shape
    outputs = kernels.shape[2]
    down, across = -(-height // 4), -(-width // 4)  # tiles of an image
    to_tile, _, to_pixels = _transforms()

    padded = images.new_zeros(batch, 4 * down + 2, 4 * across + 2, inputs)
    padded[:, 1 : height + 1, 1 : width + 1] = images.permute(0, 2, 3, 1)
    each, row, column, _ = padded.stride()
    result = images.new_empty(batch, 4 * down, 4 * across, outputs)
    images_at_once = max(1, AT_ONCE // (down * across))
    for first in range(0, batch, images_at_once):
        count = min(images_at_once, batch - first)
        tiles = count * down * across
        cut = padded.as_strided(
            (6, 6, count, down, across, inputs),
            (row, column, each, 4 * row, 4 * column, 1),
            first * each,
        )
        transformed = torch.mm(to_tile, cut.reshape(36, -1)).view(36, tiles, inputs)
        products = torch.bmm(transformed, kernels)
        pixels = torch.mm(to_pixels, products.view(36, -1))
        whole = pixels.view(4, 4, count, down, across, outputs).permute(2, 3, 0, 4, 1, 5)
        result[first : first + count].view(count, down, 4, across, 4, outputs).copy_(whole)
    return result[:, :height, :width].permute(0, 3, 1, 2)


class Winograd:
    """Takes the place of a convolution module's ``_conv_forward``, and follows its weight.

    Args:
        fewest: tiles, of all images together; with fewer, torch computes the convolution.
        least: work of an image, as `WORK`; with less, too.
    """

    def __init__(self, fewest: int = TILES, least: int = WORK) -> None:
        self.fewest, self.least = fewest, least
        self._kernels: tuple[Tensor, int, int, Kernels] | None = None

    def __deepcopy__(self, memo: object) -> Winograd:
        return Winograd(self.fewest, self.least)  # the copy has weights of its own

    def __call__(self, images: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """(B, C, H, W) to (B, K, H, W)."""
        if not self._pays(images, weight):
            return F.conv2d(images, weight, bias, padding=1)
        convolved: Tensor = _Convolution.apply(images, self._of(weight))
        return convolved if bias is None else convolved + bias[:, None, None]

    def _pays(self, images: Tensor, weight: Tensor) -> bool:
        if torch.compiler.is_compiling() or _plain.get() or torch.is_autocast_enabled("cpu"):
            return False
        tiles = -(-images.shape[2] // 4) * -(-images.shape[3] // 4)  # of an image
        work = weight.shape[0] * weight.shape[1] * tiles
        enough = len(images) * tiles >= self.fewest and work >= self.least
        here = images.device.type == weight.device.type == "cpu"
        exact = images.dtype == weight.dtype == torch.float32
        return here and exact and enough and not weight.requires_grad

    def _of(self, weight: Tensor) -> Kernels:
        """The weight's kernels, as they are now."""
        known, now = self._kernels, (weight.data_ptr(), weight._version)
        if known is None or known[0] is not weight or known[1:3] != now:
            self._kernels = (weight, *now, Kernels(weight.detach()))
        assert self._kernels is not None
        return self._kernels[3]


def use_winograd(network: nn.Module) -> None:
    """Have the wide 3 x 3 convolutions of a network take fewer multiplications on a CPU, in place.

    Names, types and weights of its layers stay as they are.

    Args:
        network: a copy in float32 whose weights nobody trains.
    """
    if platform.machine().lower() not in PROCESSORS:
        return
    for module in network.modules():
        if type(module) is nn.Conv2d and _suits(module):
            module._conv_forward = Winograd()  # type: ignore[assignment]


def _suits(layer: nn.Conv2d) -> bool:
    plain = layer.groups == 1 and layer.stride == (1, 1) and layer.dilation == (1, 1)
    same = layer.padding in ((1, 1), "same") and layer.padding_mode == "zeros"
    wide = min(layer.in_channels, layer.out_channels) >= CHANNELS
    return layer.kernel_size == (3, 3) and plain and same and wide
