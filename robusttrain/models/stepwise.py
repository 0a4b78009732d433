"""Loops of a defense that an attacker can differentiate through, however many steps they have.

A plain backward pass keeps the activations of all steps. Here a source asks for another way
(`walking`), and `loop`, through which a defense takes its steps, follows it. Without such a request
a loop is a plain loop. A request holds for the thread that makes it, and ends with its context.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from robusttrain.core.generators import SharedGenerators
from robusttrain.core.rng import Draws, Rng
from robusttrain.models.clipping import found

#: What a loop carries from step to step: a tensor, or a plain tuple of tensors (no NamedTuple).
State = TypeVar("State", bound=Tensor | tuple[Tensor, ...])


@dataclass(frozen=True)
class Walk:
    """How the backward pass goes through loops.

    Args:
        checkpoint: whether each step is computed anew on the way back, so that only the states
            between the steps are kept.
        last: how many steps at the end have their own derivative; all steps before them together
            have the identity's. None for all steps.
    """

    checkpoint: bool = False
    last: int | None = None


PLAIN = Walk()
_walk: ContextVar[Walk] = ContextVar("walk", default=PLAIN)


@contextmanager
def walking(walk: Walk) -> Iterator[None]:
    """Within this context, and in this thread, `loop` goes as ``walk`` says."""
    token = _walk.set(walk)
    try:
        yield
    finally:
        _walk.reset(token)


class Repeatable:
    """A computation that draws the same random numbers whenever it is called.

    The first call notes where the streams of this package (`Rng`) stood and, if the call draws from
    them, the states of the global generators. Every later call starts there, and leaves streams and
    generators as they are.

    Args:
        compute: what is computed.
        walk: for the loops inside, in every call. A backward pass may run in another thread, after
            the request of the first call has ended.
    """

    def __init__(self, compute: Callable[..., Any], walk: Walk) -> None:
        self.compute, self.walk = compute, walk
        self._draws: Draws | None = None
        self._generators: SharedGenerators | None = None

    def __call__(self, *inputs: Any) -> Any:
        with walking(self.walk):
            if self._draws is None:
                return self._first(*inputs)
            if self._generators is None:
                with self._draws.repeated():
                    return self.compute(*inputs)
            now = SharedGenerators(self._generators.device)
            self._generators.put_back()
            try:
                with self._draws.repeated():
                    return self.compute(*inputs)
            finally:
                now.put_back()

    def _first(self, *inputs: Any) -> Any:
        device = next(each.device for each in inputs if isinstance(each, Tensor))
        before = SharedGenerators(device)
        draws = Draws()
        with draws.noted():
            result = self.compute(*inputs)
        self._draws, self._generators = draws, before if before.drawn else None
        return result


def recomputed(compute: Callable[..., Any], *inputs: Any) -> Any:
    """``compute(*inputs)``, computed anew on the way back instead of keeping its activations.

    Args:
        compute: tensors to tensors. Its random numbers repeat, those of global generators as well.
        inputs: tensors, at least one.
    """
    inner = Walk(checkpoint=_walk.get().checkpoint)
    # `Repeatable` takes care of all generators, checkpoint only of torch's.
    repeatable, before = Repeatable(compute, inner), found()

    def again() -> Any:
        return checkpoint(repeatable, *inputs, use_reentrant=False, preserve_rng_state=False)

    result = again()
    return result if found() == before else again()


def loop(step: Callable[[State, int, Rng], State], state: State, steps: int, rng: Rng) -> State:
    """``state`` after ``steps`` steps; see `Defense.loop`."""
    walk = _walk.get() if torch.is_grad_enabled() else PLAIN
    # Steps are counted in the outermost loop: one inside of a step is part of that step.
    inner = Walk(checkpoint=walk.checkpoint)
    first = 0 if walk.last is None else max(0, steps - walk.last)
    start = state
    with torch.no_grad() if first else nullcontext():
        for number in range(first):
            state = step(state, number, rng.fold(number))
    if first:
        state = _straight(start, state)
    for number in range(first, steps):
        state = (
            _recomputed_step(step, state, number, rng)
            if walk.checkpoint
            else _plain_step(step, state, number, rng, inner)
        )
    return state


def _plain_step(step: Callable[..., Any], state: Any, number: int, rng: Rng, walk: Walk) -> Any:
    with walking(walk):
        return step(state, number, rng.fold(number))


def _recomputed_step(step: Callable[..., Any], state: Any, number: int, rng: Rng) -> Any:
    alone = isinstance(state, Tensor)

    def again(*tensors: Tensor) -> Any:
        return step(tensors[0] if alone else tensors, number, rng.fold(number))

    return recomputed(again, *((state,) if alone else state))


def differentiated_as(value: Tensor, surrogate: Tensor) -> Tensor:
    """``value`` in value, ``surrogate`` in derivative; of one shape, and finite.

    The bracket is exactly zero, so the value is untouched.
    """
    if not surrogate.requires_grad:
        return value
    return value.detach() + (surrogate - surrogate.detach())


def _straight(start: Any, later: Any) -> Any:
    """``later`` in value; the derivative of ``start``."""
    if isinstance(start, Tensor):
        return differentiated_as(later, start)
    return tuple(_straight(one, other) for one, other in zip(start, later, strict=True))
