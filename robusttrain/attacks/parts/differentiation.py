"""Gradients with respect to images, also behind activation checkpoints of the reentrant kind."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

from robusttrain.core.errors import UserError

#: Part of torch's error about a checkpoint that only ``backward()`` may pass; its node's name.
REENTRANT = "use_reentrant=True"
NODE = "CheckpointFunctionBackward"
#: Part of torch's error about values that were written over between forward and backward pass.
WRITTEN = "modified by an inplace operation"
#: Not empty once a model with such checkpoints was met; from then on each graph is searched first.
_met: list[bool] = []


def of_order_one(gradient: Tensor) -> tuple[Tensor, Tensor]:
    """The gradient over a power of two of its own order, and that power (B,).

    Its largest entry then lies between 1 and 2, so that squares neither overflow nor vanish,
    however large or small the model's logits are. Powers of two divide exactly: what depends on
    ratios alone stays the same bit for bit.

    Args:
        gradient: (B, C, H, W). One that is zero, infinite or NaN is divided by 1.
    """
    order = order_of(gradient)
    power = torch.where(order > 0, order, 1)
    return gradient / power.view(-1, 1, 1, 1), power


def order_of(gradient: Tensor) -> Tensor:
    """(B,): the greatest power of two that is not above the largest entry of a gradient
    (B, C, H, W); 0 where that is zero, infinite or NaN.
    """
    largest = gradient.abs().amax(dim=(1, 2, 3)).nan_to_num(0.0, 0.0)
    mantissa = 2 * torch.frexp(largest).mantissa
    return torch.where(largest > 0, largest / mantissa, 0)


def input_gradients(
    compute: Callable[[Tensor], Sequence[Tensor]], images: Tensor
) -> Iterator[tuple[Tensor, Tensor | None]]:
    """Values (B,) and the gradients of their sums with respect to the images alone.

    The images of a batch do not interact, so the sum separates them. Behind activation checkpoints
    of the reentrant kind torch allows only ``backward()``, which would write the gradients of
    weights as well. So the weights have to be frozen, as they are inside `prepared`.

    Args:
        compute: from images (B, C, H, W) that require a gradient to values, (B,) each; called once
            more if the graph turns out to have such a checkpoint.
        images: (B, C, H, W).

    Raises:
        UserError: the model writes over what its own gradient needs.

    Yields:
        Each value, detached, and its gradient (B, C, H, W), or None where it has none.
    """
    with torch.enable_grad():
        points = images.detach().requires_grad_()
        values = compute(points)
    take = _backward if _met and any(map(_reentrant, values)) else _grad
    for number in range(len(values)):
        more = number + 1 < len(values)
        try:
            gradient = take(values[number], points, more)
        except RuntimeError as error:
            if WRITTEN in str(error):
                raise _writes() from error
            if take is _backward or REENTRANT not in str(error):
                raise
            _met[:], take = [True], _backward
            with torch.enable_grad():
                values = compute(points)
            try:
                gradient = take(values[number], points, more)
            except RuntimeError as again:
                raise (_writes() if WRITTEN in str(again) else again) from error
        yield values[number].detach(), gradient


def _writes() -> UserError:
    return UserError(
        "the model changes its own weights or activations in forward, so nobody can differentiate"
        " it: freeze what adapts for the evaluation, or attack it by queries (--attack square)"
    )


def _grad(value: Tensor, points: Tensor, more: bool) -> Tensor | None:
    """By ``torch.autograd.grad``, which writes nothing anywhere; ``more`` gradients are to come."""
    if not value.requires_grad:
        return None
    ones = torch.ones_like(value)
    return torch.autograd.grad(value, points, ones, retain_graph=more, allow_unused=True)[0]


def _backward(value: Tensor, points: Tensor, more: bool) -> Tensor | None:
    """By ``backward()``, into the points' own ``grad``."""
    if value.requires_grad:
        value.backward(torch.ones_like(value), retain_graph=more)  # type: ignore[no-untyped-call]
    gradient, points.grad = points.grad, None
    return gradient


def _reentrant(value: Tensor) -> bool:
    """Whether a reentrant checkpoint stands in the graph of a value."""
    left, seen = [value.grad_fn], set()
    while left:
        node = left.pop()
        if node is None or node in seen:
            continue
        if node.name() == NODE:
            return True
        seen.add(node)
        left += [following for following, _ in node.next_functions]
    return False
