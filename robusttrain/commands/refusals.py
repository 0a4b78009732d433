"""Combinations of options that cannot work, or would never take effect: refused before training."""

from __future__ import annotations

import torch
from jsonargparse import Namespace

from robusttrain.attacks import Attack
from robusttrain.attacks.gradients import copies_at_once
from robusttrain.data import Batch
from robusttrain.errors import OptionError
from robusttrain.memory import bytes_per_image, free_bytes
from robusttrain.training import RobustTraining, TrainingObjective


def refuse(config: Namespace, training: RobustTraining) -> None:
    """Raise OptionError if options of train.py exclude each other.

    Args:
        config: the parsed command line.
        training: what it describes.
    """
    objective, epochs = training.objective, config.trainer.max_epochs
    name = type(objective).__name__
    parts = config.trainer.accumulate_grad_batches or 1
    if parts > 1 and not objective.accumulates:
        why = {
            "AWP": "the weights move along the gradient of the batch that a step takes, and a part of it has another",
            "Free": "the weights take a step between two replays of a batch",
        }.get(name, f"{name} takes a step after every batch")
        fix = f"{why}: set it to 1, with a smaller --data.batch_size if memory is short"
        raise OptionError("--trainer.accumulate_grad_batches", parts, fix)
    if config.swa.start is not None and config.ema:
        raise OptionError("--swa.start", config.swa.start, "excludes --ema: choose one mean of the weights")
    if epochs is None or epochs < 0:
        return
    last = f"the run has {epochs} epochs, counted from 0: give less than {epochs}, or a larger --trainer.max_epochs"
    if config.swa.start is not None and config.swa.start >= epochs:
        raise OptionError("--swa.start", config.swa.start, last)
    if training.warmup_epochs >= epochs:
        raise OptionError("--training.warmup_epochs", training.warmup_epochs, f"the rate would only rise; {last}")
    warmup = getattr(objective, "warmup", 0)
    if warmup >= epochs:
        raise OptionError("--training.objective.warmup", warmup, f"no epoch would have {name}; {last}")


def refuse_memory(training: RobustTraining, batch: Batch, batch_size: int) -> None:
    """Raise OptionError if a batch will not fit into memory; measured on two of its images.

    Args:
        training: model and objective, on the device where they will be trained.
        batch: a training batch on that device.
        batch_size: images of a batch.
    """
    free = free_bytes(batch.images.device)
    if free is None or len(batch.images) < 2:
        return
    objective = training.objective
    inner = objective.inner()
    source = inner.source(training.model).to(batch.images.device) if inner else training.model
    copies = stacked(inner.attack, batch_size, batch.images[0].numel()) if inner else 1
    each = bytes_per_image(source, batch.images)
    needed = each * batch_size * max(copies, _passes(objective))
    if needed <= free:
        return
    about = f"needs about {needed / 2**30:.1f} GiB, {free / 2**30:.1f} GiB are free"
    fits = max(1, int(free / each / batch_size))
    if copies > 1 and each * batch_size <= free:
        fix = f"{copies} draws of {batch_size} images at once: {about}: give at most {fits}"
        raise OptionError("--training.objective.attack.gradient.chunk", copies, fix)
    most = int(free / each / max(copies, _passes(objective)))
    raise OptionError("--data.batch_size", batch_size, f"{about}: give at most {max(1, most)}")


def _passes(objective: TrainingObjective) -> int:
    """Forward passes whose graphs are alive at once."""
    return getattr(objective, "objective", objective).passes


def stacked(attack: Attack, batch: int, pixels: int) -> int:
    """How many copies of a batch of this size an attack evaluates at once; ``pixels`` are an image's values, C H W."""
    inside = getattr(attack, "attack", None)
    if isinstance(inside, Attack):
        return stacked(inside, batch, pixels)
    copies, estimator = 1, getattr(attack, "gradient", None)
    while estimator is not None:
        draws = getattr(estimator, "draws", getattr(estimator, "samples", getattr(estimator, "directions", 1)))
        copies *= min(draws, copies_at_once(getattr(estimator, "chunk", None), batch * copies, pixels))
        estimator = getattr(estimator, "inner", None)
    return copies


def to_device(batch: Batch, device: torch.device) -> Batch:
    """The batch on a device."""
    return Batch(*(part.to(device) for part in batch))
