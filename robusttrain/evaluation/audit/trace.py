"""The course of an attack: its losses and iterates, watched through its estimators."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from robusttrain.attacks import Attack, GradientEstimator, LossFn
from robusttrain.core.rng import Rng

#: Iterates of a run that are kept, evenly spread.
ITERATES = 16


class Trace:
    """The course of one run of an attack: the loss at each iterate, some of the iterates, and the
    images that the attack returned.

    Of an attack that makes several runs, as with restarts, the losses are those of the last one: of
    one run after the other, the last fifth would be as high as the fifth before it, however much
    each run still rises.
    """

    def __init__(self, size: int) -> None:
        self.size = size
        self.losses: list[Tensor] = []
        self.points: list[Tensor] = []
        self.returned = torch.empty(0)
        self._every, self._seen = 1, 0
        self._calls = 0  # with the last loss
        self._last: tuple[GradientEstimator, LossFn, Rng] | None = None

    def note(
        self, estimator: GradientEstimator, loss_fn: LossFn, images: Tensor, rng: Rng, loss: Tensor
    ) -> None:
        """Note a call of the estimator on the whole batch; only such a call can be assigned to
        images.
        """
        if len(images) != self.size:
            return
        again = self._last is not None and self._last[1] is loss_fn
        # A run has one loss for all its steps. Attacks that make one for each step have one course.
        if not again and self._calls > 1:
            self.losses = []
        self._calls = self._calls + 1 if again else 1
        if self._seen % self._every == 0:
            self.points.append(images.detach().clone())
            if len(self.points) > ITERATES:
                self.points, self._every = self.points[::2], 2 * self._every
        self._seen += 1
        self.losses.append(loss.detach().double().cpu())
        self._last = (estimator, loss_fn, rng)

    def close(self, returned: Tensor) -> None:
        """Note the images that the attack returned, and the loss there."""
        self.returned = returned
        if self._last is not None:
            estimator, loss_fn, rng = self._last
            loss, _ = estimator(loss_fn, returned, rng.fold("audit"))
            self.losses.append(loss.detach().double().cpu())


@dataclass(frozen=True)
class _Watched(GradientEstimator):
    """An estimator that notes its calls."""

    inner: GradientEstimator
    trace: Trace

    @property
    def evaluations(self) -> int:
        return self.inner.evaluations

    @property
    def queries(self) -> int:
        return self.inner.queries

    def __call__(self, loss_fn: LossFn, images: Tensor, rng: Rng) -> tuple[Tensor, Tensor]:
        loss, gradient = self.inner(loss_fn, images, rng)
        self.trace.note(self.inner, loss_fn, images, rng, loss)
        return loss, gradient


def watched(attack: Attack, trace: Trace) -> Attack:
    """The attack with its estimators watched."""
    seen = attack.with_gradient(lambda gradient: _Watched(gradient, trace))
    return attack if seen is None else seen
