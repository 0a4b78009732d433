"""Layers that carry a change of a few pixels no farther than a window."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from robusttrain.models.normalize import Normalize


@dataclass(frozen=True)
class Window:
    """A layer whose output pixels see a window each: a convolution, or pooling.

    Args:
        kernel, stride, padding, dilation: rows and columns.
        fill: what lies beyond the border.
        compute: from images (B, C, H, W) to the output, without padding.
        work: multiplications for a number of the output.
    """

    kernel: tuple[int, int]
    stride: tuple[int, int]
    padding: tuple[int, int]
    dilation: tuple[int, int]
    fill: float
    compute: Callable[[Tensor], Tensor]
    work: int

    def seen(self, length: int, axis: int) -> int:
        """Rows of the input that so many rows of the output see."""
        reach = self.dilation[axis] * (self.kernel[axis] - 1)
        return (length - 1) * self.stride[axis] + reach + 1


@dataclass(frozen=True)
class Each:
    """A layer that treats each pixel by itself: an activation, batch norm, normalisation.

    Args:
        compute: from images (B, C, H, W) to the output; changes nothing in place.
    """

    compute: Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Sum:
    """The sum of two tensors of one shape, as at the end of a residual block."""


Layer = Window | Each | Sum

#: Activations without weights. Exact classes: a subclass may do anything.
_ACTIVATIONS = (
    *(nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.ELU, nn.SELU, nn.CELU, nn.GELU, nn.SiLU, nn.Mish),
    *(nn.Sigmoid, nn.Tanh, nn.Softplus, nn.Hardtanh, nn.Hardswish, nn.Hardsigmoid),
)
NOTHING = (nn.Identity, nn.Dropout, nn.Dropout2d)  # in evaluation mode


def hooked(module: nn.Module) -> bool:
    """Whether hooks look at or change the input or output of this very layer."""
    return bool(module._forward_hooks or module._forward_pre_hooks)


def of_module(layer: nn.Module) -> Layer | None:
    kind = type(layer)
    if hooked(layer) or layer.training:
        return None
    if kind in NOTHING:
        return Each(lambda images: images)
    if kind in _ACTIVATIONS:
        return Each(_out_of_place(layer))
    if kind is Normalize or (kind is nn.BatchNorm2d and layer.running_mean is not None):
        return Each(layer)  # without running statistics it is about the whole batch
    if kind is nn.Conv2d and isinstance(layer, nn.Conv2d):
        if isinstance(layer.padding, str) or layer.padding_mode != "zeros":
            return None
        weight, bias, groups = layer.weight, layer.bias, layer.groups
        stride, dilation = _pair(layer.stride), _pair(layer.dilation)
        return Window(
            _pair(layer.kernel_size),
            stride,
            _pair(layer.padding),
            dilation,
            0.0,
            lambda images: F.conv2d(images, weight, bias, stride, 0, dilation, groups),
            weight[0].numel(),
        )
    if kind is nn.MaxPool2d and isinstance(layer, nn.MaxPool2d):
        if layer.return_indices or layer.ceil_mode:
            return None
        kernel, stride = _pair(layer.kernel_size), _pair(layer.stride)
        dilation = _pair(layer.dilation)
        return Window(
            kernel,
            stride,
            _pair(layer.padding),
            dilation,
            -torch.inf,
            lambda images: F.max_pool2d(images, kernel, stride, 0, dilation),
            kernel[0] * kernel[1],
        )
    if kind is nn.AvgPool2d and isinstance(layer, nn.AvgPool2d):
        kernel, stride = _pair(layer.kernel_size), _pair(layer.stride)
        plain = _pair(layer.padding) == (0, 0) and layer.divisor_override is None
        if layer.ceil_mode or not plain:
            return None
        return Window(
            kernel,
            stride,
            (0, 0),
            (1, 1),
            0.0,
            lambda images: F.avg_pool2d(images, kernel, stride),
            kernel[0] * kernel[1],
        )
    return None


def _out_of_place(layer: nn.Module) -> Callable[[Tensor], Tensor]:
    """An activation on a tensor that others still need."""
    if getattr(layer, "inplace", False):
        return lambda images: layer(images.clone())
    return layer


def _pair(value: Any) -> tuple[int, int]:
    numbers = (value, value) if isinstance(value, int) else tuple(value)
    return int(numbers[0]), int(numbers[-1])
