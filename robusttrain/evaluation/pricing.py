"""What one evaluation of a source takes on this machine, in seconds for each image."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from robusttrain.attacks import Queried, prepared
from robusttrain.attacks.parts.differentiation import input_gradients
from robusttrain.core.processor import finish
from robusttrain.core.rng import Rng
from robusttrain.models.compiling import Mode, gradients_by

#: Seconds from which a first call on a CPU tells enough: little of them warmed anything up.
LONG = 5.0


def any_value(source: Queried, rng: Rng, points: Tensor) -> list[Tensor]:
    """A loss (B,) of logits, whose gradient costs as much as an attack's."""
    return [source(points, rng).logsumexp(dim=1)]


def of_gradient(source: Queried, images: Tensor, rng: Rng, compiled: Mode) -> float:
    """Of a gradient with respect to the images (B, C, H, W).

    Raises:
        UserError: the source has none.
    """

    def gradient() -> None:
        with gradients_by(compiled):
            list(input_gradients(partial(any_value, source, rng), images.clone()))

    return _seconds(gradient, source, images, compiles=compiled != "off")


def of_answer(source: Queried, images: Tensor, rng: Rng) -> float:
    """Of an answer to the images (B, C, H, W)."""
    return _seconds(lambda: source(images, rng), source, images)


def of_g(source: Queried, images: Tensor, rng: Rng) -> float:
    """Of the source's g alone."""
    return _seconds(lambda: source.transform(images, rng), source, images)


def _seconds(
    work: Callable[[], object], source: Queried, images: Tensor, compiles: bool = False
) -> float:
    """The shorter of two rounds, after one that warms up; that one alone where it is `LONG`, and
    neither waited for an accelerator nor compiled.
    """
    seconds: list[float] = []
    for _ in range(3):
        start = time.perf_counter()
        with prepared(source), torch.no_grad():
            work()
        finish(images.device)
        seconds.append(time.perf_counter() - start)
        if seconds[0] > LONG and images.device.type == "cpu" and not compiles:
            break
    return min(seconds[1:] or seconds) / len(images)
