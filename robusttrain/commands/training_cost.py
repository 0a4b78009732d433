"""``train.py --estimate``: what a recipe will cost, said without running it."""

from __future__ import annotations

import itertools
import time
from typing import Any

import torch

from robusttrain.callbacks import RobustAccuracy
from robusttrain.cli import console
from robusttrain.commands.estimate import duration
from robusttrain.commands.refusals import to_device
from robusttrain.data import Batch, ImageData
from robusttrain.evaluation import Engine
from robusttrain.training import Passes, RobustTraining


def estimate(training: RobustTraining, data: ImageData, trainer: Any, robust: RobustAccuracy | None) -> int:
    """Print what training, and validation under attack, will cost here; returns gradient evaluations of training.

    Args:
        training: what would be trained; its weights take a few steps here.
        data: set up for "fit", with its replays.
        trainer: Lightning's, not started: its device, precision and limits count.
        robust: the attacks of validation, if there are any.
    """
    device = trainer.strategy.root_device
    training.to(device)
    loader = data.train_dataloader()
    batches = limited(len(loader), trainer.limit_train_batches)
    batch = data.on_after_batch_transfer(to_device(next(iter(loader)), device), 0)
    epochs = max(0, trainer.max_epochs or 0)
    images, total, seconds = batches * len(batch.images) * trainer.world_size, 0, 0.0
    # A wrapper may begin later: phases of epochs that cost the same.
    phases = [(cost, len(list(group))) for cost, group in itertools.groupby(map(training.objective.at, range(epochs)))]
    first = 0
    for objective, length in phases:
        cost = objective.cost()
        each = seconds_of_step(training, batch, trainer, first)
        evaluations = (cost.inner + cost.training) * images * length
        told = f"epochs {first} to {first + length - 1}, {type(objective).__name__}: {images:,} images an epoch, each "
        _say(
            f"{told}{_told(cost)}: {evaluations:,} gradient evaluations, about {duration(each * batches * length)} here"
        )
        total, seconds, first = total + evaluations, seconds + each * batches * length, first + length
    _say(f"training: {total:,} gradient evaluations, about {duration(seconds)} here")
    if robust is not None and epochs:
        looks = sum((epoch + 1) % robust.every == 0 or epoch + 1 == epochs for epoch in range(epochs))
        shown = data.validation_images(robust.images)
        engine = Engine(training.model, robust.scenarios, robust.seed, robust.draws)
        found = to_device(shown, device)
        for source in engine.sources.values():
            source.to(device)
        expected = engine.measure(found.images, found.labels)
        gradients = sum(each.attack.cost().gradients for each in robust.scenarios.values())
        count = gradients * len(shown.images) * looks
        spent = sum(expected.values()) * len(shown.images) * looks
        told = f"{looks} times on {len(shown.images)} images"
        _say(f"robust accuracy: {told}: {count:,} gradient evaluations, about {duration(spent)} here")
    return total


def seconds_of_step(training: RobustTraining, batch: Batch, trainer: Any, epoch: int) -> float:
    """Seconds of a step: losses, backward pass and update; the shorter of two after one that warms up."""
    optimizer = torch.optim.SGD([weight for weight in training.parameters() if weight.requires_grad], lr=1e-4)
    training.train()
    found = []
    for _ in range(3):
        start = time.perf_counter()
        with trainer.precision_plugin.train_step_context():
            losses, _ = training.losses(batch, 0, epoch)
            loss = losses.mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if batch.images.is_cuda:
            torch.cuda.synchronize(batch.images.device)
        found.append(time.perf_counter() - start)
    return min(found[1:])


def limited(batches: int, limit: float | None) -> int:
    """Batches of an epoch under Lightning's ``limit_train_batches``: a number of them, or a share."""
    if limit is None:
        return batches
    return min(batches, limit) if isinstance(limit, int) else int(batches * limit)


def _told(cost: Passes) -> str:
    parts = [f"{cost.training} for the weights"]
    if cost.inner:
        parts.insert(0, f"{cost.inner} gradient evaluations of the inner attack")
    if cost.queries:
        parts.append(f"{cost.queries} forward {'pass' if cost.queries == 1 else 'passes'} alone")
    return parts[0] if len(parts) == 1 else ", ".join(parts[:-1]) + " and " + parts[-1]


def _say(line: str) -> None:
    console.print(line, soft_wrap=True, highlight=False)
