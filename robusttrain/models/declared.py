"""What a model declares, and how it is called: the one way to anybody's model.

A model with ``takes_rng = True`` draws in ``forward(images, rng)`` from the streams of the images,
and from nowhere else. Its attribute ``random`` says whether two answers to one image may differ. A
model that declares neither is called as torch calls it.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from itertools import chain
from typing import Any
from weakref import WeakSet

import torch
from torch import Tensor, nn
from torch.compiler import is_compiling

from robusttrain.core.errors import UserError
from robusttrain.core.memory_format import in_rows, use_plain_format
from robusttrain.core.rng import Rng
from robusttrain.models.clipping import clipping, inward, look_at, looked_at
from robusttrain.models.compiling import Compiled, called, gradients_by
from robusttrain.models.outputs import logits_of

#: Part of torch's error about ``view`` on a tensor in another memory format.
NO_VIEW = "view size is not compatible"
#: Models in which this error was met.
_in_rows: WeakSet[nn.Module] = WeakSet()


def takes_streams(model: nn.Module) -> bool:
    """Whether the model takes its randomness from outside."""
    return bool(getattr(model, "takes_rng", False))


def says_random(model: nn.Module) -> bool:
    """Whether the model declares that it is random; by default, whether it takes streams.

    An attribute of that name that is no bool, such as a generator, declares nothing.
    """
    said = getattr(model, "random", None)
    return said if isinstance(said, bool) else takes_streams(model)


class Function(nn.Module):
    """A plain function as a module.

    Args:
        function: images (B, C, H, W) in [0, 1] to logits.
    """

    def __init__(self, function: Callable[[Tensor], Any]) -> None:
        super().__init__()
        self.function = function

    def forward(self, images: Tensor) -> Any:
        return self.function(images)


def as_module(model: nn.Module | Callable[[Tensor], Any]) -> nn.Module:
    """The model itself if it is a module, else the function as one.

    Raises:
        UserError: ``model`` is neither a module nor a function.
    """
    if isinstance(model, nn.Module):
        return model
    if isinstance(model, type) or not callable(model):
        given = f"the class {model.__name__}" if isinstance(model, type) else repr(model)
        raise UserError(f"expected a torch.nn.Module or a function of images, got {given}")
    return Function(model)


def dtype_of(model: nn.Module) -> torch.dtype | None:
    """The type in which a model computes, that of its first weight; None where it has none."""
    weights = chain(model.parameters(), model.buffers())
    return next((weight.dtype for weight in weights if weight.is_floating_point()), None)


def output_of(
    model: nn.Module, images: Tensor, rng: Rng | None, compiled: Compiled | None = None
) -> Any:
    """What the model returns for a copy of the images, which it may change: ``model(images, rng)``
    for models that take streams.

    Any other model gets the copy in the type of its weights, and contiguous if the model fails with
    the faster format. ``compiled`` answers in its place, as it does for a model that is trained now
    (`robusttrain.models.compiling`).
    """
    own = images.dtype if takes_streams(model) else dtype_of(model) or images.dtype
    depth = clipping.get(model) if _differentiated(images) else None
    given = images if depth is None else inward(images, own, depth)
    images = given.clone() if given is images and own == images.dtype else given.to(own)
    if takes_streams(model):
        return model(images, rng)
    if model in _in_rows:
        return model(in_rows(images))
    try:
        return (compiled or partial(called, model))(images)
    except RuntimeError as error:
        if NO_VIEW not in str(error):
            raise
    # `view` expects the rows of pixels of one channel after the other: only the contiguous format
    # of images and weights gives right answers.
    use_plain_format(model)
    _in_rows.add(model)
    return model(in_rows(images))


def answer(model: nn.Module, images: Tensor, rng: Rng | None) -> Tensor:
    """Logits (B, K), float32 or wider, from whatever the model returns (`logits_of`).

    They are on the images' device, whatever the model's is: numpy arrays come from the CPU. With a
    gradient, a model that clips is asked `inward` of the images.
    """
    if not _differentiated(images) or model in looked_at:
        return _answer(model, images, rng)
    position = None if rng is None else rng.position
    with gradients_by("off"):  # compiled code would not show what it does
        logits = _answer(model, images, rng)
    if not look_at(model, logits, images):
        return logits
    if rng is not None and position is not None:
        rng.position = position  # as if the pass had not been
    return _answer(model, images, rng)


def _differentiated(images: Tensor) -> bool:
    """Whether a gradient with respect to the images may be asked for; not while a network around
    this one is compiled, which is looked at itself.
    """
    return torch.is_grad_enabled() and images.requires_grad and not is_compiling()


def _answer(model: nn.Module, images: Tensor, rng: Rng | None) -> Tensor:
    return logits_of(output_of(model, images, rng), len(images)).to(images.device)
