"""``train.py --estimate``: the cost of a recipe, said without running it."""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

from robusttrain.core.processor import finish
from robusttrain.core.telling import Say, duration
from robusttrain.data import Batch, ImageData
from robusttrain.defenses import Defense
from robusttrain.evaluation import Engine
from robusttrain.training import Passes, RobustTraining, optimizers
from robusttrain.training.callbacks import SWA, Overfitting, RobustAccuracy
from robusttrain.training.refusals import limited, to_device


def estimate(
    training: RobustTraining,
    data: ImageData,
    trainer: Any,
    say: Say,
    watching: Sequence[Any] = (),
) -> int:
    """Say what training, and validation under attack, will cost on this machine.

    Returns the gradient evaluations of training.

    Args:
        training: what would be trained; its weights take a few steps for the estimate.
        data: set up for "fit", with its replays.
        trainer: Lightning's, not started; its device, precision and limits count.
        say: takes lines.
        watching: callbacks; the cost of their attacks counts.
    """
    device = trainer.strategy.root_device
    training.to(device)
    data.trainer = trainer  # whose processes share the batches
    loader = data.train_dataloader()
    batch = data.on_after_batch_transfer(to_device(next(iter(loader)), device), 0)
    batches, epochs, steps = planned(len(loader), trainer)
    size, total, seconds = len(batch.images) * trainer.world_size, 0, 0.0
    # A wrapper may begin later, so epochs form phases of the same cost.
    phases = [
        (cost, len(list(group)))
        for cost, group in itertools.groupby(map(training.objective.at, range(epochs)))
    ]
    first, left = 0, steps
    for objective, length in phases:
        cost, taken = objective.cost(), min(left, length * batches)
        each, through_g = a_step(training, batch, trainer, first)
        evaluations = round((cost.inner + cost.training + through_g) * size * taken)
        phase = (
            f"epochs {first} to {first + length - 1}, {type(objective).__name__}:"
            f" {batches * size:,} images an epoch"
        )
        inside = f", and {through_g:g} of f_b inside g" if through_g else ""
        say(
            f"{phase}, each {_in_words(cost)}{inside}: {evaluations:,} gradient evaluations,"
            f" {about(each * taken)}"
        )
        total, seconds, first, left = (
            total + evaluations,
            seconds + each * taken,
            first + length,
            left - taken,
        )
    say(f"training: {total:,} gradient evaluations, {about(seconds)}")
    for callback in watching if epochs else ():
        if isinstance(callback, SWA) and callback.start + 1 < epochs:
            shown, times = min(callback.batches, batches), epochs - callback.start - 1
            what = (
                f"statistics of the averaged weights: {times} times on {shown * size:,} training"
                " images"
            )
            say(f"{what}: at most {about(each * shown * times)}")
        at = validations(trainer, batches, steps)
        # Attacks go by this number, even where max_steps ends the run before.
        last = epochs if trainer.max_epochs is None else trainer.max_epochs
        if (look := looking(callback, training, data, last, device, at)) is not None:
            own = isinstance(callback, RobustAccuracy)
            what = "robust accuracy" if own else "inner attack on validation images"
            say(
                f"{what}: {look.times} times on {look.images} images: {look.gradients:,} gradient"
                f" evaluations, {about(look.seconds)}"
            )
    return total


#: Epochs of a run for which nobody says any: Lightning's choice.
UNSAID = 1000


def planned(length: int, trainer: Any) -> tuple[int, int, int]:
    """Batches of an epoch, epochs, and batches in all, within the trainer's limits."""
    batches = limited(length, trainer.limit_train_batches)
    epochs = trainer.max_epochs
    if epochs is None and trainer.max_steps == -1:
        epochs = UNSAID
    epochs = max(0, epochs or 0)
    total = batches * epochs
    if trainer.max_steps > 0 and batches:
        parts = trainer.accumulate_grad_batches
        # An epoch ends with a step, of fewer batches where they do not come out even.
        whole, rest = divmod(trainer.max_steps, math.ceil(batches / parts))
        most = whole * batches + rest * parts
        total = min(total, most) if epochs else most
        epochs = math.ceil(total / batches)
    return batches, epochs, total


def steps_of(batches: int, total: int, parts: int) -> int:
    """Steps of the optimizer: one in so many batches, and one at the end of an epoch.

    Args:
        batches: of an epoch.
        total: batches of the run.
        parts: batches of a step.
    """
    if not batches:
        return 0
    epochs, rest = divmod(total, batches)
    return epochs * math.ceil(batches / parts) + math.ceil(rest / parts)


def validations(trainer: Any, batches: int, total: int) -> list[int]:
    """The epochs, counted from 1, at hand when validation runs.

    Args:
        trainer: whose options say when.
        batches: of an epoch.
        total: batches of the run.
    """
    apart, seldom = trainer.val_check_interval, trainer.check_val_every_n_epoch
    if not trainer.limit_val_batches or not batches:
        return []
    if isinstance(apart, float):
        apart = max(1, int(batches * apart))
    elif not isinstance(apart, int):  # a time
        apart = batches
    if seldom is None:
        return [math.ceil(done / batches) for done in range(apart, total + 1, apart)]
    return [
        epoch
        for epoch in range(seldom, math.ceil(total / batches) + 1, seldom)
        for _ in range(min(batches, total - (epoch - 1) * batches) // apart)
    ]


class Look(NamedTuple):
    """What the attacks of a callback cost over a run.

    Args:
        times: how often they run.
        images: validation images each time.
        gradients: gradient evaluations in all.
        seconds: in all, on this machine.
    """

    times: int
    images: int
    gradients: int
    seconds: float


def looking(
    callback: Any,
    training: RobustTraining,
    data: ImageData,
    epochs: int,
    device: Any,
    validated: Sequence[int] | None = None,
) -> Look | None:
    """The cost of a callback's attacks in so many epochs; None for one that attacks nothing.

    Args:
        callback: any.
        training: whose model it attacks.
        data: set up for "fit".
        epochs: of the run.
        device: where it runs.
        validated: the epochs, counted from 1, at hand when validation runs; default: each, once.
    """
    robust = callback.attacks if isinstance(callback, Overfitting) else callback
    if not isinstance(robust, RobustAccuracy):
        return None
    at = range(1, epochs + 1) if validated is None else validated
    looks = sum(epoch % robust.every == 0 or epoch == epochs for epoch in at)
    if not looks:
        return None
    shown = data.validation_images(robust.images)
    engine = Engine(training.model, robust.scenarios, robust.seed, robust.draws)
    batch = to_device(shown, device)
    for source in engine.sources.values():
        source.to(device)
    expected = engine.measure(batch.images, batch.labels)
    count = (
        sum(each.attack.cost().gradients for each in robust.scenarios.values())
        * len(shown.images)
        * looks
    )
    spent = sum(expected.values()) * len(shown.images) * looks
    return Look(looks, len(shown.images), count, spent)


def a_step(training: RobustTraining, batch: Batch, trainer: Any, epoch: int) -> tuple[float, float]:
    """Seconds of a step (the shorter of two, after one that warms up), and gradient evaluations
    inside g for each image.
    """
    # The run's own, which takes its time, but hardly moves the weights.
    optimizer = optimizers.make(training.model, {**training.optimizing, "learning_rate": 1e-4})
    training.train()

    def step() -> float:
        start = time.perf_counter()
        with trainer.precision_plugin.train_step_context():
            losses, _ = training.losses(batch, 0, epoch)
            loss = losses.mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        finish(batch.images.device)
        return time.perf_counter() - start

    step()  # warms up, and settles what the model answers with
    with counted(training) as inside:
        seconds = min(step(), step())
    return seconds, sum(inside) / 2 / len(batch.images)


@contextmanager
def counted(training: RobustTraining) -> Iterator[list[int]]:
    """The gradient evaluations that defenses make on their own models while the block runs, one
    entry for each pass.
    """
    evaluations: list[int] = []

    def count(defense: Any, inputs: tuple[Any, ...]) -> None:
        evaluations.append(defense.gradients * len(inputs[0]))

    hooks = [
        part.register_forward_pre_hook(count)
        for part in training.modules()
        # A chain and a vote say what their parts take, which count for themselves.
        if isinstance(part, Defense) and part.parts == (part,)
    ]
    try:
        yield evaluations
    finally:
        for hook in hooks:
            hook.remove()


def about(seconds: float) -> str:
    return f"about {duration(seconds)} here"


def _in_words(cost: Passes) -> str:
    parts = [f"{cost.training} for the weights"]
    if cost.inner:
        parts.insert(0, f"{cost.inner} gradient evaluations of the inner attack")
    if cost.queries:
        parts.append(f"{cost.queries} forward {'pass' if cost.queries == 1 else 'passes'} alone")
    return parts[0] if len(parts) == 1 else ", ".join(parts[:-1]) + " and " + parts[-1]
