"""A training that takes a stated time: ``--training.minutes`` chooses its length and inner steps.

A step of the recipe is measured on the machine at hand, in float32 and in bfloat16, and so is a
validation. The schedule is laid out over as many epochs as begin in the time, each of them a little
shorter, so that they fit. Where one inner step leaves time to spare, more of them are taken.
"""

from __future__ import annotations

import copy
import json
import math
import os
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from pytorch_lightning.plugins.environments import LightningEnvironment

from robusttrain.config.checkpoints import as_before, read_recipe
from robusttrain.config.trainer import trainer_from
from robusttrain.config.watching import watchers
from robusttrain.core.errors import UserError
from robusttrain.core.parts import class_name
from robusttrain.core.processor import finish, seconds_of
from robusttrain.core.telling import Say, duration, first_process
from robusttrain.data import Batch, ImageData
from robusttrain.running.resuming import earlier
from robusttrain.training import NFGSM, RobustTraining
from robusttrain.training.cost import a_step, looking, steps_of, validations
from robusttrain.training.plan import Node, TrainingPlan
from robusttrain.training.refusals import limited, to_device

#: Passes over the data after which finer inner steps are worth more than further passes: the length
#: of N-FGSM's own runs on CIFAR-10 (de Jorge et al. 2022).
ENOUGH = 30
#: Numbers of inner steps that are tried, in this order.
STEPS = (1, 2, 3, 5, 10)
#: Of the time, what is planned; the rest is for reading data and writing checkpoints.
PLANNED = 0.9
#: Of a run, what averaged weights may remember: a short run would keep its initial weights in mind.
MEMORY = 0.05
#: An epoch after every warm-up: objectives that begin cheaper have their full cost there.
LATE = 1_000_000
#: Batches that a measurement of the loader reads.
READ = 4
#: What the first process has chosen, for those that Lightning starts for it.
HANDED_ON = "ROBUSTTRAIN_BUDGET"
#: Options of the trainer that a stated time decides.
CHOSEN = ("max_epochs", "limit_train_batches", "precision")
#: Precisions of training that are tried where ``trainer.precision`` names none.
PRECISIONS = ("32-true", "bf16-mixed")
#: How many times as fast bfloat16 must be to be taken: less may be noise.
WORTH = 1.1


def within(plan: TrainingPlan, job: Callable[[TrainingPlan], Any], say: Say) -> TrainingPlan:
    """The plan with ``trainer.max_epochs``, the inner steps and the precision that its
    ``training.minutes`` leave time for; the plan itself where it states no time.

    A run that goes on keeps what it began with. Of several processes the first one measures, and
    all take what it chose.

    Args:
        plan: of the training.
        job: makes the parts of a plan, `robusttrain.running.training.Job`.
        say: takes a line on what was chosen.

    Raises:
        UserError: less than one batch fits, or processes were started by somebody who cannot hand
            the choice on.
    """
    minutes = plan.training.get("minutes")
    if minutes is None:
        return plan
    if plan.ckpt_path is not None:
        return _as_begun(plan, job(plan).name)
    trainer = _trainer(plan)
    if trainer.world_size > 1:
        _refuse_strangers(trainer, minutes)
    if not first_process():
        return replace(plan, **json.loads(os.environ[HANDED_ON]))
    began = job(plan)
    data = began.data
    data.prepare_data()
    data.setup("fit")
    began.take_further_images()  # which make more batches of an epoch
    plan = _in_faster_precision(plan, job, data, say)
    seconds, chosen = 60 * minutes * PLANNED, None
    for steps in STEPS:
        tried = replace(plan, training=_with_steps(plan.training, steps))
        if chosen is not None and tried.training == chosen[0].training:
            continue
        pace = measured(job(tried), data)
        if chosen is not None and seconds / pace.epoch < ENOUGH:
            break
        chosen = tried, pace
        if seconds / pace.epoch < ENOUGH:
            break
    assert chosen is not None  # STEPS is not empty
    tried, pace = chosen
    own = _own_step(plan.training)
    if own and seconds / pace.epoch >= ENOUGH:
        say(
            f"--training.minutes {minutes:g}: leaves time for more inner steps; one is kept, since"
            f" {' and '.join(own)} would be lost with it"
        )
    sized = _sized(tried, pace, seconds, say)
    if trainer.world_size > 1:
        parts = {"training": sized.training, "trainer": sized.trainer, "ema": sized.ema}
        os.environ[HANDED_ON] = json.dumps(parts)
    return sized


def _trainer(plan: TrainingPlan) -> Any:
    return trainer_from({**plan.trainer, "enable_progress_bar": False}, logger=False)


def _refuse_strangers(trainer: Any, minutes: float) -> None:
    """Raise UserError if all processes were started at once, by torchrun or Slurm: each of them
    would choose a length of its own.
    """
    environment = trainer.strategy.cluster_environment
    if isinstance(environment, LightningEnvironment):
        return
    raise UserError(
        f"--training.minutes {minutes:g}: with processes that torchrun or Slurm starts there is no"
        " one length: give --training.minutes null and --trainer.max_epochs N, or start a single"
        " process with --trainer.devices N, which starts the others"
    )


def _in_faster_precision(
    plan: TrainingPlan, job: Callable[[TrainingPlan], Any], data: ImageData, say: Say
) -> TrainingPlan:
    """The plan with the faster ``trainer.precision``, where it names none."""
    if plan.trainer.get("precision") is not None:
        return plan
    tried = [replace(plan, trainer={**plan.trainer, "precision": each}) for each in PRECISIONS]
    full, half = (measured(job(each), data).step for each in tried)
    taken = full > WORTH * half
    say(
        f"--trainer.precision {PRECISIONS[taken]}: a step in bfloat16 takes {half / full:.2f} of"
        " the time of one in float32 here"
    )
    return tried[taken]


@dataclass(frozen=True)
class Pace:
    """What an epoch takes on this machine.

    Args:
        step: seconds of a training step, with reading its batch.
        batches: training batches of an epoch.
        validation: seconds of the validations of an epoch, attacks included.
        inner: gradient evaluations of the inner attack.
    """

    step: float
    batches: int
    validation: float
    inner: int

    @property
    def epoch(self) -> float:
        """Seconds."""
        return self.step * self.batches + self.validation


def _sized(plan: TrainingPlan, pace: Pace, seconds: float, say: Say) -> TrainingPlan:
    """The plan with as many epochs as there are begun ones in the time, each shortened alike."""
    epochs = max(1, math.ceil(seconds / pace.epoch))
    batches = min(pace.batches, int((seconds / epochs - pace.validation) / pace.step))
    if epochs > 1 and batches < pace.batches / 2:
        epochs, batches = epochs - 1, pace.batches
    if batches < 1:
        raise UserError(
            f"--training.minutes {plan.training['minutes']:g}: not one batch fits beside"
            f" validation ({duration(pace.validation)}): give more minutes, or less to look at"
            " (--robust.images)"
        )
    trainer = {**plan.trainer, "max_epochs": epochs}
    about = f"an epoch takes about {duration(pace.epoch)} here"
    if batches < pace.batches:
        trainer["limit_train_batches"] = batches
        about += f", so each has {batches} of {pace.batches} batches"
    parts = plan.trainer.get("accumulate_grad_batches") or 1
    steps = steps_of(batches, epochs * batches, parts)
    longest = max(0.0, 1 - 1 / (MEMORY * steps))
    if plan.ema > longest:
        about += f"; --ema {longest:.4g}, since {plan.ema:g} would remember the first weights"
    say(
        f"--training.minutes {plan.training['minutes']:g}: {epochs} epochs,"
        f" {pace.inner} gradient evaluations of the inner attack a step; {about}"
    )
    return replace(plan, trainer=trainer, ema=min(plan.ema, longest))


def _with_steps(settings: dict[str, Any], steps: int) -> dict[str, Any]:
    """Settings of a training whose innermost single-step objective takes so many steps; unchanged
    for one step, and where the recipe has its own number of them.
    """
    changed = copy.deepcopy(settings)
    node, _ = _innermost(changed)
    if steps > 1 and class_name(node["class_path"]) == "NFGSM" and not _own_step(settings):
        node.update(_finer(node["init_args"], steps))
    return changed


def _innermost(settings: dict[str, Any]) -> tuple[Node, str]:
    """The node of the objective that no other wraps, and the option that it stands under."""
    node, option = settings["objective"], "--training.objective"
    while "objective" in (node.get("init_args") or {}):
        node, option = node["init_args"]["objective"], f"{option}.objective"
    return node, option


def _own_step(settings: dict[str, Any]) -> list[str]:
    """What somebody says of N-FGSM's single step that is not as in the paper: several smaller
    steps know nothing of it.
    """
    node, option = _innermost(settings)
    if class_name(node["class_path"]) != "NFGSM":
        return []
    arguments = node.get("init_args") or {}
    return [
        f"{option}.{name} {arguments[name]:g}"
        for name in ("noise", "step")
        if arguments.get(name, getattr(NFGSM, name)) != getattr(NFGSM, name)
    ]


def _finer(arguments: dict[str, Any], steps: int) -> Node:
    """PGD adversarial training with N-FGSM's threat, source and smoothing."""
    attack = {
        "class_path": "robusttrain.attacks.ProjectedGradient",
        "init_args": {
            "steps": steps,
            "step_size": None,
            "relative_step_size": min(0.625, 2 / steps),
            "random_start": True,
            "threat": arguments["threat"],
        },
    }
    kept = {name: arguments[name] for name in ("source", "label_smoothing", "batch_norm")}
    return {
        "class_path": "robusttrain.training.Adversarial",
        "init_args": {"attack": attack, **kept},
    }


def measured(job: Any, data: ImageData) -> Pace:
    """What an epoch of the job takes.

    Args:
        job: `robusttrain.running.training.Job`.
        data: set up for "fit"; in place of the job's own, which would be read again.
    """
    plan, training = job.plan, job.training()
    data.replays = training.objective.replays
    trainer = _trainer(plan)
    device = trainer.strategy.root_device
    training.to(device)
    data.trainer = trainer  # whose processes share the batches
    loader = data.train_dataloader()
    batches = limited(len(loader), trainer.limit_train_batches)
    batch, reading = _read(loader, data, device)
    step, _ = a_step(training, batch, trainer, LATE)
    around = training.model.defense is not None and not training.model.defense.differentiable
    watching = watchers(plan, around, training.objective.inner())  # which speak in the run
    every = max(1, plan.robust.every)  # epochs, of which one is looked at
    looks = [looking(each, training, data, every, device) for each in watching]
    span = every * _epochs_to_a_validation(trainer, batches)
    validated = validations(trainer, batches, span * batches)
    attacked = sum(epoch % every == 0 for epoch in validated)
    validation = len(validated) * _plain_validation(training, data, trainer, device)
    validation += attacked * sum(look.seconds for look in looks if look is not None)
    return Pace(step + reading, batches, validation / span, training.objective.cost().inner)


def _epochs_to_a_validation(trainer: Any, batches: int) -> int:
    """Epochs, of so many batches, of which at least one has a validation."""
    if trainer.check_val_every_n_epoch is not None:
        return int(trainer.check_val_every_n_epoch)
    apart = trainer.val_check_interval  # batches, counted over all epochs
    return max(1, math.ceil(apart / max(1, batches))) if isinstance(apart, int) else 1


def _read(loader: Any, data: Any, device: Any) -> tuple[Batch, float]:
    """A training batch on the device, and seconds of reading one, after one that warms up."""
    seconds: list[float] = []
    batches = iter(loader)
    while len(seconds) <= READ:
        start = time.perf_counter()
        batch = next(batches, None)
        if batch is None:
            break
        last = data.on_after_batch_transfer(to_device(batch, device), 0)
        finish(device)
        seconds.append(time.perf_counter() - start)
    timed = seconds[1:] or seconds
    return last, sum(timed) / len(timed)


def _plain_validation(training: RobustTraining, data: Any, trainer: Any, device: Any) -> float:
    """Seconds of a forward pass over the validation images."""
    loader = data.val_dataloader()
    batches = limited(len(loader), trainer.limit_val_batches)
    if not batches:
        return 0.0
    batch = data.on_after_batch_transfer(to_device(next(iter(loader)), device), 0)
    training.eval()
    with torch.no_grad():
        return seconds_of(lambda: training.model(batch.images), batch.images.device, 1) * batches


def _as_begun(plan: TrainingPlan, name: str) -> TrainingPlan:
    """The plan with the length, inner steps and precision of the run that it goes on with."""
    assert plan.ckpt_path is not None
    old = read_recipe(earlier(plan.ckpt_path, Path(plan.checkpoints) / name))
    begun = old.get("plan") or {}
    settings, trainer = (begun.get(part) or {} for part in ("training", "trainer"))
    had, has = settings.get("minutes"), plan.training["minutes"]
    if had != has:
        raise UserError(
            f"--ckpt_path {plan.ckpt_path}: that run was planned with training.minutes = {had},"
            f" this one with {has:g}: give the same, or start a new run without --ckpt_path"
        )
    # No class that the file names is taken from it: of this plan's own ways, the one that it chose.
    ways = [_with_steps(plan.training, steps) for steps in STEPS]
    began = as_before(settings.get("objective"))
    chosen = [way for way in ways if as_before(way["objective"]) == began]
    return replace(
        plan,
        training=(chosen or ways)[0],
        ema=begun.get("ema", plan.ema),
        trainer={**plan.trainer, **{key: trainer.get(key) for key in CHOSEN}},
    )
