"""Carries out the plan of a training: `train`."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.callbacks import EarlyStopping, ModelCheckpoint

from robusttrain.config.build import build, build_defended, fit_to_data
from robusttrain.config.checkpoints import recipe_of
from robusttrain.config.suites import refuse_few_classes
from robusttrain.config.trainer import trainer_from
from robusttrain.config.training import build_training
from robusttrain.config.watching import idle_undo, keep_in, keepers, monitored, watchers
from robusttrain.core.advice import without_advice
from robusttrain.core.errors import UserError, under
from robusttrain.core.parts import class_name
from robusttrain.core.processor import telling_size
from robusttrain.core.stopping import saying_how_to_go_on
from robusttrain.core.telling import SILENT, Say, Telling, first_process
from robusttrain.data import Facts, ImageData, ImageFolder
from robusttrain.evaluation import Engine, Scenario, check_classes, need_two
from robusttrain.evaluation.covering import covering, threats_of
from robusttrain.evaluation.fitting import short_steps
from robusttrain.models.compiling import Mode
from robusttrain.running.budget import within
from robusttrain.running.f_b import (
    data_for,
    f_b_trainer,
    places,
    provide_f_b,
    refuse_other_f_b,
    training_of,
)
from robusttrain.running.made_from import BESIDE, ORIGIN, besides, digests, own_code
from robusttrain.running.precision_of_g import is_open, settle
from robusttrain.running.purifiers import folder_in, newest, provide, without_weights
from robusttrain.running.resuming import (
    CLASSES,
    LENGTH,
    PROCESSES,
    claimed,
    placed,
    refuse_other_besides,
    refuse_other_images,
    refuse_other_processes,
    sole,
    tell_within_epoch,
)
from robusttrain.storage.files import may_write
from robusttrain.training import RobustTraining
from robusttrain.training.callbacks import (
    Dashboard,
    Pictures,
    RobustAccuracy,
    Validated,
    of_last_epoch,
)
from robusttrain.training.compiling import chosen_for
from robusttrain.training.cost import estimate, planned, steps_of
from robusttrain.training.loggers import begun, ending, refuse_missing
from robusttrain.training.plan import TrainingPlan
from robusttrain.training.refusals import (
    refuse,
    refuse_batches,
    refuse_expanded,
    refuse_memory,
    to_device,
)
from robusttrain.training.schedules import TO_THE_END


@dataclass(frozen=True)
class Trained:
    """What a training left.

    Args:
        folder: of its checkpoints.
        metrics: by name, of the last epoch.
        epochs: that are done, earlier parts of a run that went on among them.
        went_on: whether there was an earlier part.
        validated: epochs that were done at the last validation, whose figures are among the metrics
            only if no epoch came after it; 0: there was none.
    """

    folder: Path
    metrics: dict[str, float]
    epochs: int
    went_on: bool = False
    validated: int = 0

    @property
    def checkpoints(self) -> list[str]:
        """The names of its checkpoints."""
        names = ("best.ckpt", "last.ckpt")
        return [name for name in names if (self.folder / name).is_file()]


class Job:
    """The parts of a plan, as they fit its data.

    Args:
        plan: of the training.
    """

    def __init__(self, plan: TrainingPlan) -> None:
        self.plan = plan
        self.data: ImageData = build(plan.data, "data", kind=ImageData)
        self.facts: Facts = self.data.facts()
        need_two(self.facts.num_classes)
        self.model, self.defense, self.settings = copy.deepcopy(
            (plan.model, plan.defense, plan.training)
        )
        fit_to_data(self.model, self.facts, "model")
        fit_to_data(self.defense, self.facts, "defense")

    @property
    def name(self) -> str:
        """Of the run."""
        nodes = (self.plan.data, self.defense, self.model)
        return self.plan.name or "-".join(short_name(node) for node in nodes if node)

    def training(self) -> RobustTraining:
        """The LightningModule; each time the same weights."""
        return build_training(
            lambda: build_defended(self.model, self.defense),
            self.settings,
            self.plan.seed,
            self.facts.num_classes,
        )

    def take_further_images(self) -> int:
        """Give the data those of ``--extra.root``, if any; how many there are."""
        return 0 if self.plan.extra.root is None else add_extra(self.plan, self.data)

    def recipe(self) -> dict[str, Any]:
        """What its checkpoints hold to rebuild the model and to go on; the data take the plan's
        further images.
        """
        plan = self.plan
        run: dict[str, Any] = {"seed": plan.seed, "ema": plan.ema}
        if self.settings["schedule"] in TO_THE_END:
            # The schedule depends on these.
            run["max_epochs"] = plan.trainer["max_epochs"]
            run |= {key: to for key in LENGTH if (to := plan.trainer.get(key)) is not None}
        if plan.monitor is not None:
            run["monitor"] = plan.monitor
        if plan.guard.undo:
            run["undo"] = True
        if plan.swa.start is not None:
            run["swa"] = asdict(plan.swa)
        if plan.extra.root is not None:
            run["extra"] = {"images": self.take_further_images(), "share": plan.extra.share}
        recipe = recipe_of(self.model, self.defense, plan.data)
        if plan.compile != "off":
            run["compile"] = plan.compile  # what it comes to is measured later
        return {**recipe, "training": self.settings, "run": run}


@without_advice()
def train(plan: TrainingPlan, telling: Telling = SILENT) -> Trained | None:
    """Carry out a plan; what is trained is kept under ``plan.checkpoints``.

    Returns:
        What came out; None if the plan asks for an estimate alone.
    """
    with ExitStack() as held:
        return _train(plan, telling, held)


def _train(plan: TrainingPlan, telling: Telling, held: ExitStack) -> Trained | None:
    """`train`; ``held`` gets the lock of the run's folder."""
    refuse_missing(plan.loggers)
    say = telling.say
    plan = within(plan, Job, say)
    job = Job(plan)
    checkpoints = may_write(Path(plan.checkpoints), "--checkpoints")
    may_write(Path(plan.logs), "--logs")
    # Finds mistakes before an f_b is trained: in the model's options, and in attacks that do not
    # fit it.
    first_look = job.training()
    objective, target = first_look.objective, first_look.model
    refuse(plan, first_look)
    objective.check(target)
    around = target.defense is not None and not target.defense.differentiable
    monitor = monitored(plan, objective.inner())
    watching = watchers(plan, around, objective.inner(), say)
    if idle := idle_undo(plan, watching, objective.strengthened() is not None):
        say(idle)
    attacks = shown(watching)
    refuse_few_classes(attacks, job.facts.num_classes, "--robust.attacks")
    sources = Engine(target, attacks).sources if attacks else {}
    threats = threats_of(target.defense)
    if (inner := objective.inner()) is not None:
        threats.append(("--training.objective.attack.threat.epsilon", inner.attack.threat))
    threats += [("--robust.epsilon", each.attack.threat) for each in attacks.values()]
    for line in covering(threats, job.facts):
        say(line)
    minutes = plan.training.get("minutes")
    if (
        minutes is not None
        and plan.ckpt_path is None
        and (first := trained_first(job, checkpoints))
    ):
        say(
            f"--training.minutes {minutes:g} begin after another training: {' and '.join(first)} is"
            " not at hand, and comes first"
        )
    recipe = job.recipe()
    job.data.replays = objective.replays
    place = placed(plan.ckpt_path, checkpoints / job.name, recipe, plan.to_json())
    keeping = keepers(plan, monitor, place.folder, say)
    validated = Validated()
    trainer = trainer_from(
        plan.trainer,
        say,
        logger=False,  # nothing is written yet
        callbacks=[*watching, validated, *keeping, Dashboard(recipe)],
    )
    refuse_other_processes(place.resume, trainer.world_size)
    job.data.prepare_data()
    job.data.setup("fit")
    origin = digests(job.data)
    refuse_other_images(place.resume, job.data.class_names, origin, say)
    code = own_code(job.model, job.defense, job.settings, plan.data)
    beside = besides(code, target.classifier, job.settings["objective"], job.data)
    refuse_other_besides(place.resume, beside, say)
    for line in short_steps({"the inner attack of training": inner} if inner else {}):
        say(line)
    job.data.trainer = trainer  # whose processes share the batches
    check_on_data(job, first_look, sources, trainer, say)
    batches, _, total = planned(len(job.data.train_dataloader()), trainer)
    steps = steps_of(batches, total, trainer.accumulate_grad_batches)
    if short := first_weights_left(plan.ema, steps):
        say(short)
    if is_open(job.defense):
        device = trainer.strategy.root_device
        few = telling_size(job.data.batch_size, device)
        images = job.data.validation_images(few).images.to(device)
        settle(job.defense, recipe["defense"], images, trainer.world_size, say)
        first_look = job.training()
    compiled = compile_on_data(job, first_look, recipe["run"], trainer, say)
    if plan.estimate:
        estimate_all(job, trainer, first_look, [*watching, *keeping], say)
        return None
    attacked = objective.inner() is not None
    goes_on = place.resume is not None
    tell_within_epoch(place.resume, say)
    with claimed(place) as place:  # before hours of an f_b, in which others may start
        held.enter_context(sole(place.folder, say))
        trainer.loggers = begun(plan.loggers, plan.logs, job.name, place.version, goes_on)
        keep_in(place.folder, keeping)
        del first_look, objective, target, sources
        if job.defense is not None and not goes_on:  # else they are in the checkpoint
            provide_f_b(
                job.defense,
                job.data,
                plan.f_b_training,
                checkpoints / "f_b",
                plan.trainer,
                plan.seed,
                say=say,
            )
            provide(job.defense, job.data, folder_in(checkpoints), plan.trainer, plan.seed, say=say)
        training = job.training()
        if place.resume is not None:
            refuse_other_f_b(job.defense, training, place.resume)
    training.compiled_as(compiled)
    training.recipe = {
        **recipe,
        CLASSES: job.data.class_names,
        ORIGIN: origin,
        BESIDE: beside,
        "plan": plan.to_json(),
        PROCESSES: trainer.world_size,
    }
    trainable = sum(parameter.numel() for parameter in training.model.parameters())
    say(f"training {job.name}, {trainable / 1e6:.2f} M parameters, into {place.folder}")
    seldom = attacked and plan.robust.every != 1 and monitor == "val/accuracy"
    why = f", since --robust.every {plan.robust.every} leaves epochs without an attack"
    say(f"best.ckpt: the epoch that is best by {monitor}{why if seldom else ''}")

    def how_to_go_on() -> str:
        # Only the first process has made the folder; the others know it by what keeps weights.
        folders = [] if first_process() else [Path(each.dirpath) for each in kept if each.dirpath]
        there = replace(place, folder=folders[0]) if folders else place
        return there.how_to_go_on

    kept = [each for each in keeping if isinstance(each, ModelCheckpoint)]
    written = [checkpoints, Path(plan.logs)]
    with ending(trainer.loggers), saying_how_to_go_on(say, how_to_go_on, written):
        trainer.fit(
            training,
            datamodule=job.data,
            ckpt_path=place.resume,
            weights_only=True if place.resume else None,
        )
    metrics = {key: float(value) for key, value in trainer.callback_metrics.items() if "/" in key}
    epochs = trainer.current_epoch
    if any(each.stopped_epoch for each in keeping if isinstance(each, EarlyStopping)):
        say(
            f"--early_stopping {plan.early_stopping}: stopped after epoch {epochs}, as so many"
            f" validations brought no better {monitor}"
        )
    metrics = of_last_epoch(metrics, [*watching, validated], epochs)
    return Trained(place.folder, metrics, epochs, goes_on, validated.epoch)


def trained_first(job: Job, checkpoints: Path) -> list[str]:
    """What the defense lacks, so that it is trained before the run: f_b, or a purifying network."""
    plan, data = job.plan, job.data
    folder = checkpoints / "f_b"
    f_bs = places(job.defense, data, plan.f_b_training, folder, plan.seed, plan.trainer)
    purifying = [
        kind
        for kind, arguments in without_weights(job.defense)
        if newest(kind, arguments["model"], data, folder_in(checkpoints)) is None
    ]
    return ["f_b" for _, _, path in f_bs if not path.is_file()] + purifying


def first_weights_left(ema: float, steps: int) -> str | None:
    """A line where the mean of a run this short would be mostly its first weights, or nearly so."""
    left = ema ** max(0, steps - 1)
    if not ema or left < 0.2:
        return None
    return (
        f"--ema {ema:g}: of the averaged weights of {steps:,} steps, {left:.0%} are those after the"
        " first step: average less, or train longer"
    )


def check_on_data(
    job: Job,
    training: RobustTraining,
    sources: dict[str, Any],
    trainer: pl.Trainer,
    say: Say,
) -> None:
    """Raise UserError if models, batches or memory do not fit the data; settle the precision of
    inner attacks.
    """
    data, classes = job.data, job.facts.num_classes
    refuse_batches(job.plan, training, trainer, len(data.train_dataloader()))
    with under("--data"):
        example = data.validation_images(1).images
        check_classes(training.model, example, classes)
    refuse_expanded(training.model, bool(job.plan.ema) or job.plan.swa.start is not None)
    training.objective.check_images(training.model, example)
    for attack, source in sources.items():
        check_classes(source, example, classes, f"--robust.attacks {attack}: its source")
    device = trainer.strategy.root_device
    batch = data.on_after_batch_transfer(to_device(next(iter(data.train_dataloader())), device), 0)
    refuse_memory(training.to(device), batch, data.batch_size)
    if job.settings["inner_precision"] == "auto":
        speeds = training.settle_inner_precision(batch)
        job.settings["inner_precision"] = chosen = training.inner_precision
        why = speeds or "there is no inner attack that would be as strong in bfloat16"
        say(f"precision: inner attacks differentiate in {chosen}, since {why}")
    training.rehearse(batch)


def compile_on_data(
    job: Job, training: RobustTraining, run: dict[str, Any], trainer: pl.Trainer, say: Say
) -> Mode:
    """How training steps take gradients; what was chosen is noted in ``run``, for checkpoints."""
    asked = run.pop("compile", "off")
    if asked == "off":
        return "off"
    loader = job.data.train_dataloader()
    _, _, steps = planned(len(loader), trainer)
    device = trainer.strategy.root_device
    batch = job.data.on_after_batch_transfer(to_device(next(iter(loader)), device), 0)
    choice = chosen_for(asked, training.to(device), batch, trainer, steps)
    say(str(choice))
    if choice.mode != "off":
        run["compile"] = choice.mode
    return choice.active


def shown(callbacks: Sequence[pl.Callback]) -> dict[str, Scenario]:
    """The attacks that run during validation, that of the pictures among them."""
    scenarios: dict[str, Scenario] = {}
    for callback in callbacks:
        if isinstance(callback, Pictures) and callback.images:
            scenarios[callback.name] = callback.scenario
        if isinstance(callback, RobustAccuracy):
            scenarios.update(callback.scenarios)
    return scenarios


def estimate_all(
    job: Job,
    trainer: pl.Trainer,
    training: RobustTraining,
    callbacks: Sequence[pl.Callback],
    say: Say,
) -> None:
    """Say what the run would cost, an f_b that would be trained before it first."""
    plan, data = job.plan, job.data
    folder = Path(plan.checkpoints) / "f_b"
    for arguments, settings, path in places(
        job.defense, data, plan.f_b_training, folder, plan.seed, plan.trainer
    ):
        if not path.is_file():
            say(
                f"f_b: none at hand; first one would be trained ({plan.f_b_training}), kept as"
                f" {path}:"
            )
            f_b = training_of(arguments["model"], job.facts.num_classes, settings, plan.seed)
            estimate(f_b, data_for(f_b, data), f_b_trainer(plan.trainer, settings["epochs"]), say)
            say("the run itself:")
    estimate(training, data, trainer, say, callbacks)


def add_extra(plan: TrainingPlan, data: ImageData) -> int:
    """Give ``data`` the images of ``--extra.root``; how many there are.

    Raises:
        UserError: they are not sorted by class, or are of other classes or shape.
    """
    root, facts = plan.extra.root, data.facts()
    assert root is not None  # else nobody calls
    try:
        extra = ImageFolder(
            root, data.batch_size, 0.0, image_size=facts.image_size, channels=facts.channels
        )
        with under("--extra"):
            return data.add_extra(extra, plan.extra.share)
    except UserError as error:
        if str(error).startswith("--extra"):
            raise
        reason = str(error).partition(": give --data")[0]
        raise UserError(
            f"--extra.root {root}: images without labels train nothing here ({reason}): sort them"
            " into train/<class>/, by a model's predictions if need be"
        ) from error


def short_name(node: dict[str, Any]) -> str:
    """A part's name in the name of a run."""
    arguments = node.get("init_args") or {}
    return str(arguments.get("name") or class_name(node["class_path"])).lower()
