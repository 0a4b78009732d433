"""Refuses, before training, combinations of options that cannot work or never take effect."""

from __future__ import annotations

import math
from itertools import chain
from types import SimpleNamespace

import pytorch_lightning as pl
import torch
from torch import nn

from robusttrain.attacks import Attack
from robusttrain.core.errors import OptionError, UserError, at_least
from robusttrain.data import Batch
from robusttrain.evaluation.memory import bytes_per_image, free_bytes
from robusttrain.training import RobustTraining
from robusttrain.training.plan import TrainingPlan
from robusttrain.training.schedules import TO_THE_END

#: Weights in half or double precision beside images in float32.
TRUE = ("16-true", "bf16-true", "64-true", "64")


def refuse(plan: TrainingPlan, training: RobustTraining) -> None:
    """Raise UserError if options of train.py exclude each other, or do not fit the classes.

    Args:
        plan: of the training.
        training: the module that the plan describes.
    """
    objective, options = training.objective, SimpleNamespace(**plan.trainer)
    name = type(objective).__name__
    if (inner := objective.inner()) is not None:
        try:
            inner.attack.need_classes(training.num_classes)
        except UserError as error:
            raise UserError(f"--training.objective.attack: {error}") from error
    if options.accumulate_grad_batches is not None:
        at_least("--trainer.accumulate_grad_batches", options.accumulate_grad_batches, 1)
    parts = options.accumulate_grad_batches or 1
    if parts > 1 and not objective.accumulates:
        why = {
            "AWP": (
                "the weights move along the gradient of the batch that a step takes, and a part of"
                " it has another"
            ),
            "Free": "the weights take a step between two replays of a batch",
        }.get(name, f"{name} takes a step after every batch")
        fix = f"{why}: set it to 1, with a smaller --data.batch_size if memory is short"
        raise OptionError("--trainer.accumulate_grad_batches", parts, fix)
    every = options.val_check_interval
    if plan.swa.start is not None and every is not None and (isinstance(every, int) or every < 1):
        fix = (
            "with --swa.start weights are averaged when an epoch ends, and validation within one"
            " would judge old ones"
        )
        raise OptionError("--trainer.val_check_interval", every, f"{fix}: leave it out")
    if plan.early_stopping and options.limit_val_batches == 0:
        fix = "without validation nothing tells when to stop early: leave out --early_stopping"
        raise OptionError("--trainer.limit_val_batches", options.limit_val_batches, fix)
    if str(options.precision) in TRUE:
        fix = "images stay in float32: take bf16-mixed, 16-mixed or 32-true"
        raise OptionError("--trainer.precision", options.precision, fix)
    if options.max_steps == 0:
        fix = "no step would be taken: leave it out, or give --trainer.max_epochs 0"
        raise OptionError("--trainer.max_steps", 0, fix)
    steps = (options.max_steps or -1) > 0
    if options.gradient_clip_val is not None:
        # Lightning takes a negative value for none at all.
        at_least("--trainer.gradient_clip_val", options.gradient_clip_val, 0)
    if not options.gradient_clip_val and options.gradient_clip_algorithm is not None:
        fix = "clips nothing without --trainer.gradient_clip_val: give that, or leave this out"
        raise OptionError("--trainer.gradient_clip_algorithm", options.gradient_clip_algorithm, fix)
    if options.max_epochs is None and not steps and options.max_time is None:
        fix = (
            "Lightning would train 1,000 epochs: give their number, --trainer.max_steps or max_time"
        )
        if not options.fast_dev_run:
            raise OptionError("--trainer.max_epochs", None, fix)
    # Without a number of epochs, Lightning goes by time alone where one is given.
    timed = options.max_epochs is None and options.max_time is not None
    endless = not steps and (timed or (options.max_epochs or 0) < 0)
    if endless and training.schedule in TO_THE_END:
        fix = (
            f"the schedule {training.schedule} needs an end: give a number, or --training.schedule"
            " constant"
        )
        raise OptionError("--trainer.max_epochs", options.max_epochs, fix)
    if options.max_epochs is not None:
        refuse_never(plan, training, options.max_epochs)


def refuse_expanded(model: nn.Module, averaged: bool) -> None:
    """Raise UserError for a tensor of a network whose elements share memory: nothing can be copied
    into it, so no checkpoint could be read again, and averaged weights could not take its place.

    Args:
        model: to be trained.
        averaged: whether averaged weights take the place of others, also those of buffers that no
            checkpoint keeps.
    """
    kept = model.state_dict().keys()
    for name, tensor in chain(model.named_parameters(), model.named_buffers()):
        sizes = zip(tensor.shape, tensor.stride(), strict=True)
        shared = tensor.numel() and any(size > 1 and not step for size, step in sizes)
        if shared and (averaged or name in kept):
            raise UserError(
                f"model: {name} is an expanded tensor, whose elements share memory, so no"
                " checkpoint could be read into it: make it whole where it is built, with"
                " .expand(...).clone()"
            )


def refuse_batches(
    plan: TrainingPlan, training: RobustTraining, trainer: pl.Trainer, batches: int
) -> None:
    """Raise OptionError if the limits of a run leave nothing to do, or end the run too early for an
    option.

    Args:
        plan: of the training.
        training: the module that the plan describes.
        trainer: built from the plan.
        batches: number of batches of the training data.
    """
    limit = trainer.limit_train_batches
    length = limited(batches, limit)
    if not length and batches:
        raise OptionError(
            "--trainer.limit_train_batches", limit, f"leaves none of {batches} batches: give more"
        )
    every = trainer.val_check_interval
    if isinstance(every, int) and every > length and trainer.check_val_every_n_epoch is not None:
        raise OptionError(
            "--trainer.val_check_interval",
            every,
            f"an epoch has {length} batches: give at most that",
        )
    if trainer.max_steps > 0 and length:
        reached = math.ceil(trainer.max_steps / math.ceil(length / trainer.accumulate_grad_batches))
        epochs = -1 if trainer.max_epochs is None else trainer.max_epochs
        refuse_never(plan, training, reached if epochs < 0 else min(reached, epochs))


def refuse_never(plan: TrainingPlan, training: RobustTraining, epochs: int) -> None:
    """Raise OptionError if an option would take effect only after the last of ``epochs`` epochs.

    A negative number stands for a run without end.
    """
    if epochs <= 0:
        return
    objective = training.objective
    last = (
        f"the run has {epochs} epochs, counted from 0: give less than {epochs}, or a larger"
        " --trainer.max_epochs (--trainer.max_steps, where that ends the run)"
    )
    if training.milestones and max(training.milestones) >= epochs:
        raise OptionError(
            "--training.milestones",
            training.milestones,
            f"the rate would not drop so often; {last}",
        )
    if training.schedule_options.get("decay_epochs", 0) >= epochs:
        raise OptionError(
            "--training.schedule_options.decay_epochs",
            training.schedule_options["decay_epochs"],
            f"the rate would never drop; {last}",
        )
    if never_attacks(plan, epochs):
        apart = plan.trainer["check_val_every_n_epoch"]
        raise OptionError(
            "--robust.every",
            plan.robust.every,
            f"none of {epochs} epochs is attacked, since a validation comes only every {apart}"
            " (--trainer.check_val_every_n_epoch): give 1",
        )
    if plan.swa.start is not None and plan.swa.start >= epochs:
        raise OptionError("--swa.start", plan.swa.start, last)
    if training.warmup_epochs >= epochs:
        raise OptionError(
            "--training.warmup_epochs", training.warmup_epochs, f"the rate would only rise; {last}"
        )
    warmup = objective.warmup
    if warmup >= epochs:
        name = type(objective).__name__
        raise OptionError(
            "--training.objective.warmup", warmup, f"no epoch would have {name}; {last}"
        )


def never_attacks(plan: TrainingPlan, epochs: int) -> bool:
    """Whether a run has epochs with a validation, and epochs in which validation would attack, and
    none that is both.
    """
    options, every = SimpleNamespace(**plan.trainer), plan.robust.every
    apart = options.check_val_every_n_epoch
    if not every or apart is None or options.limit_val_batches == 0:
        return False
    validated = range(apart, epochs + 1, apart)
    attacked = (epoch % every == 0 or epoch == options.max_epochs for epoch in validated)
    return len(validated) > 0 and not any(attacked)


def refuse_memory(training: RobustTraining, batch: Batch, batch_size: int) -> None:
    """Raise OptionError if a batch will not fit into memory, as measured on two of its images.

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
    needed = each * batch_size * max(copies, objective.passes_at_once)
    if needed <= free:
        return
    about = f"needs about {needed / 2**30:.1f} GiB, {free / 2**30:.1f} GiB are free"
    fits = max(1, int(free / each / batch_size))
    if copies > 1 and each * batch_size <= free:
        fix = f"{copies} draws of {batch_size} images at once: {about}: give at most {fits}"
        raise OptionError("--training.objective.attack.gradient.chunk", copies, fix)
    most = int(free / each / max(copies, objective.passes_at_once))
    raise OptionError("--data.batch_size", batch_size, f"{about}: give at most {max(1, most)}")


def limited(batches: int, limit: float | None) -> int:
    """Batches of an epoch under Lightning's ``limit_train_batches``: a number of them, or a
    share.
    """
    if limit is None:
        return batches
    return min(batches, limit) if isinstance(limit, int) else int(batches * limit)


def stacked(attack: Attack, batch: int, pixels: int) -> int:
    """How many copies of a batch of this size an attack evaluates at once.

    Args:
        attack: the attack.
        batch: images of the batch.
        pixels: pixel values of an image, C H W.
    """
    if attack.members:
        return max(stacked(member, batch, pixels) for member in attack.members)
    return attack.estimator.stacked(batch, pixels) if attack.estimator else 1


def to_device(batch: Batch, device: torch.device) -> Batch:
    """The batch on a device."""
    return Batch(*(part.to(device) for part in batch))
