"""The memory format of networks: channels_last, the fastest one, with right results everywhere.

oneDNN writes past a buffer when it computes the weight gradient of one kind of convolution: kernel
1 x 1, a stride above 1, no groups, float32, channels_last, fewer input channels than a SIMD
register holds numbers (oneDNN issue 6035; seen with 2 to 7 channels under AVX2). The gradient is
wrong, or the process dies. Such a convolution looks at every s-th pixel only, so it equals a
convolution of stride 1 on every s-th pixel. The kernels for stride 1 are sound, so this module
computes that convolution. ``docs/processors.md`` says how to find out when the workaround can go.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

#: Numbers of float32 in the widest SIMD register, AVX-512's.
REGISTER = 16


def use_fastest_format(network: nn.Module) -> None:
    """Bring ``network`` into channels_last, in place.

    All code that chooses a memory format calls this function.

    Names of weights, state dicts, hooks, attributes and results stay as they are. Only weights of
    four dimensions change their format. Convolutions of the kind that oneDNN breaks compute their
    equivalent from now on.

    Args:
        network: any module that takes images (B, C, H, W), on any device.
    """
    for parameter in network.parameters():
        if parameter.dim() == 4:  # Module.to would stumble over the five dimensions of a Conv3d
            parameter.data = parameter.data.contiguous(memory_format=torch.channels_last)
    for module in network.modules():
        if isinstance(module, nn.Conv2d) and _broken(
            module.weight, module.stride, module.padding, module.groups
        ):
            # nn.Conv2d.forward calls this method. A subclass with a forward pass of its own calls
            # the function, which `exact_convolutions` catches.
            module._conv_forward = EveryNthPixel(module.stride)  # type: ignore[assignment]


def use_plain_format(network: nn.Module) -> None:
    """Bring the weights of ``network`` back into the contiguous format, in place."""
    for parameter in network.parameters():
        parameter.data = in_rows(parameter.data)


def in_rows(tensor: Tensor) -> Tensor:
    """The tensor in the contiguous format, strides and all.

    One of a single channel is contiguous and channels_last at once, and only its strides tell a
    convolution in which format to answer.
    """
    return tensor.clone(memory_format=torch.contiguous_format)


@dataclass(frozen=True)
class EveryNthPixel:
    """Takes the place of a convolution module's ``_conv_forward``: its stride becomes a choice of
    pixels.

    Args:
        stride: rows and columns from one pixel to the next.
    """

    stride: tuple[int, ...]

    def __call__(self, images: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """(B, C, H, W) to (B, K, ceil(H / stride), ceil(W / stride))."""
        return _of_every_nth(images, weight, bias, self.stride)


def _of_every_nth(
    images: Tensor, weight: Tensor, bias: Tensor | None, stride: tuple[int, ...]
) -> Tensor:
    """The convolution of every s-th pixel. A function: the torch.compile of torch 2.11 does not
    follow the making of a frozen dataclass.
    """
    rows, columns = stride
    return F.conv2d(images[..., ::rows, ::columns], weight, bias)


def exact_convolutions(device: torch.device) -> AbstractContextManager[object]:
    """A context in which code that calls ``conv2d`` itself gets the equivalent, too, on a CPU.

    Forward passes that train weights run in it, since a user's network may call ``conv2d``.
    Gradients with respect to images were never wrong. An accelerator has no such fault, and calls
    of torch that Python looks at one by one would leave it waiting.
    """
    return _ExactConvolutions() if device.type == "cpu" else nullcontext()


class _ExactConvolutions(TorchFunctionMode):
    """The mode of `exact_convolutions`."""

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Iterable[type],
        args: tuple[Any, ...] = (),
        kwargs: Any = None,
    ) -> Any:
        kwargs = kwargs or {}
        if func is F.conv2d:
            return _exact(*args, **kwargs)
        return func(*args, **kwargs)


def _exact(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
) -> Tensor:
    """`torch.nn.functional.conv2d`, with its arguments."""
    if not _broken(weight, stride, padding, groups):
        return F.conv2d(input, weight, bias, stride, padding, dilation, groups)
    return _of_every_nth(input, weight, bias, _pair(stride))


def _broken(weight: Tensor, stride: Any, padding: Any, groups: int) -> bool:
    """Whether the weight gradient of such a convolution may be wrong in channels_last."""
    return (
        tuple(weight.shape[2:]) == (1, 1)
        and groups == 1
        and weight.shape[1] < REGISTER
        and max(_pair(stride)) > 1
        and (padding == "valid" or max(_pair(padding)) == 0)
    )


def _pair(value: Any) -> tuple[int, ...]:
    """Rows and columns, from one number for both or from two."""
    numbers = (value,) if isinstance(value, int) else tuple(value)
    return numbers * 2 if len(numbers) == 1 else numbers
