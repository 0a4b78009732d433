"""What ``python train.py`` does: parse, build, run."""

from __future__ import annotations

import copy
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.loggers import TensorBoardLogger

from robusttrain.commands import reparameterization
from robusttrain.commands.f_b import f_b_trainer, places, provide_f_b, training_of
from robusttrain.commands.refusals import refuse, refuse_batches, refuse_memory, to_device
from robusttrain.commands.training_cost import estimate
from robusttrain.commands.watching import keepers, monitored, watchers
from robusttrain.config.build import PLACES, build, build_defended, fit_to_data
from robusttrain.config.checkpoints import as_before, read_recipe, recipe_of
from robusttrain.config.command_line import trainer_from
from robusttrain.config.training import build_training, read_plan
from robusttrain.core.console import console, first_process, say
from robusttrain.core.errors import UserError, under
from robusttrain.core.stopping import saying_how_to_go_on
from robusttrain.data import ImageData, ImageFolder
from robusttrain.evaluation import Engine, Scenario, check_classes
from robusttrain.storage.files import writable
from robusttrain.training import RobustTraining
from robusttrain.training.callbacks import Dashboard, Pictures, RobustAccuracy, flat
from robusttrain.training.plan import TrainingPlan


def run(arguments: list[str]) -> None:
    """Train as the command line says."""
    if reparameterization.chosen(arguments):
        reparameterization.run(arguments)
        return
    train(read_plan(arguments))


def train(plan: TrainingPlan) -> None:
    """Carry out a plan; what is trained is kept under ``plan.checkpoints``."""
    data: ImageData = build(plan.data, "data", kind=ImageData)
    facts = data.facts()
    model, defense, settings = copy.deepcopy((plan.model, plan.defense, plan.training))
    fit_to_data(model, facts, "model")
    fit_to_data(defense, facts, "defense")
    checkpoints = writable(Path(plan.checkpoints), "--checkpoints")
    writable(Path(plan.logs), "--logs")
    whole = partial(build_defended, model, defense)
    # Finds mistakes before an f_b is trained: in the model's options, and in attacks that do not
    # fit it.
    first_look = build_training(whole, settings, plan.seed, facts.num_classes)
    refuse(plan, first_look)
    first_look.objective.check(first_look.model)
    around = first_look.model.defense is not None and not first_look.model.defense.differentiable
    monitor = monitored(plan, first_look.objective.inner())
    watching = watchers(plan, around, first_look.objective.inner())
    attacks = shown(watching)
    sources = Engine(first_look.model, attacks).sources if attacks else {}
    name = plan.name or "-".join(short_name(node) for node in (plan.data, defense, model) if node)
    recipe = recipe_of(model, defense, plan.data)
    recipe |= {"training": settings, "run": {"seed": plan.seed, "ema": plan.ema}}
    if settings["schedule"] in ("cosine", "one_cycle"):
        recipe["run"]["max_epochs"] = plan.trainer["max_epochs"]  # the schedule depends on it
    if plan.swa.start is not None:
        recipe["run"]["swa"] = asdict(plan.swa)
    data.replays = first_look.objective.replays
    if plan.extra.root is not None:
        recipe["run"]["extra"] = {"images": add_extra(plan, data), "share": plan.extra.share}
    resume = resumed(plan.ckpt_path, checkpoints / name, recipe)
    # A file that lies elsewhere starts a folder of its own, beside this run's others.
    at_home = (
        resume is not None and resume.resolve().parent.parent == (checkpoints / name).resolve()
    )
    version = resume.parent.name if resume and at_home else next_version(checkpoints / name)
    folder = checkpoints / name / version
    keeping = keepers(plan, monitor, folder)
    trainer = trainer_from(
        plan.trainer,
        logger=TensorBoardLogger(plan.logs, name=name, version=version, default_hp_metric=False),
        callbacks=[*watching, *keeping, Dashboard(flat(recipe))],
    )
    data.prepare_data()
    data.setup("fit")
    refuse_batches(plan, first_look, trainer, len(data.train_dataloader()))
    with under("--data"):
        example = data.validation_images(1).images
        check_classes(first_look.model, example, facts.num_classes)
    first_look.objective.check_images(first_look.model, example)
    for attack, source in sources.items():
        check_classes(source, example, facts.num_classes, f"--robust.attacks {attack}: its source")
    device = trainer.strategy.root_device
    batch = data.on_after_batch_transfer(to_device(next(iter(data.train_dataloader())), device), 0)
    refuse_memory(first_look.to(device), batch, data.batch_size)
    if settings["inner_precision"] == "auto":
        speeds = first_look.settle_inner_precision(batch)
        settings["inner_precision"] = chosen = first_look.inner_precision
        why = speeds or "there is no inner attack that would be as strong in bfloat16"
        say(f"precision: inner attacks differentiate in {chosen}, since {why}")
    if plan.estimate:
        estimate_all(plan, data, trainer, first_look, defense, [*watching, *keeping])
        return
    del first_look, sources
    if defense is not None:
        provide_f_b(defense, data, plan.f_b_training, checkpoints / "f_b", plan.trainer, plan.seed)
    training = build_training(whole, settings, plan.seed, facts.num_classes)
    training.recipe = {**recipe, "classes": data.class_names, "plan": plan.to_json()}

    trainable = sum(parameter.numel() for parameter in training.model.parameters())
    console.print(
        f"training {name}, {trainable / 1e6:.2f} M parameters, into {folder}", soft_wrap=True
    )
    seldom = (
        training.objective.inner() is not None
        and plan.robust.every != 1
        and monitor == "val/accuracy"
    )
    why = (
        f", since --robust.every {plan.robust.every} leaves epochs without an attack"
        if seldom
        else ""
    )
    console.print(
        f"best.ckpt: the epoch that is best by {monitor}{why}", soft_wrap=True, highlight=False
    )
    if first_process():  # the others save where the first one does: Lightning tells them
        writable(folder, "--checkpoints")

    def how_to_go_on() -> str:
        if not (folder / "last.ckpt").is_file():
            return "no epoch was finished, so nothing is kept; the same command starts again"
        return (
            f"the last finished epoch is kept as {folder / 'last.ckpt'}; --ckpt_path last goes on"
            " from there"
        )

    with saying_how_to_go_on(say, how_to_go_on):
        trainer.fit(
            training, datamodule=data, ckpt_path=resume, weights_only=True if resume else None
        )
    told = {
        key: f"{float(value):.3f}" for key, value in trainer.callback_metrics.items() if "/" in key
    }
    console.print(f"done: {told}", soft_wrap=True)
    kept = " and ".join(name for name in ("best.ckpt", "last.ckpt") if (folder / name).is_file())
    console.print(f"kept {folder}/{kept}; attack with python evaluate.py", soft_wrap=True)


def shown(callbacks: list[pl.Callback]) -> dict[str, Scenario]:
    """The attacks that run during validation, that of the pictures among them."""
    found: dict[str, Scenario] = {}
    for callback in callbacks:
        if isinstance(callback, Pictures) and callback.images:
            found[callback.name] = callback.scenario
        if isinstance(callback, RobustAccuracy):
            found.update(callback.scenarios)
    return found


def estimate_all(
    plan: TrainingPlan,
    data: ImageData,
    trainer: pl.Trainer,
    training: RobustTraining,
    defense: dict[str, Any] | None,
    callbacks: list[pl.Callback],
) -> None:
    """Say what the run would cost, an f_b that would be trained before it first."""
    folder = Path(plan.checkpoints) / "f_b"
    for arguments, settings, path in places(defense, data, plan.f_b_training, folder, plan.seed):
        if not path.is_file():
            console.print(
                f"f_b: none at hand; first one would be trained ({plan.f_b_training}), kept as"
                f" {path}:"
            )
            f_b = training_of(arguments["model"], data.facts().num_classes, settings, plan.seed)
            estimate(f_b, data.alone(), f_b_trainer(plan.trainer, settings["epochs"]))
            console.print("the run itself:")
    estimate(training, data, trainer, callbacks)


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
        told = str(error).partition(": give --data")[0]
        raise UserError(
            f"--extra.root {root}: images without labels train nothing here ({told}): sort them"
            " into train/<class>/, by a model's predictions if need be"
        ) from error


def short_name(node: dict[str, Any]) -> str:
    """A part's name in the name of a run."""
    arguments = node.get("init_args") or {}
    return str(arguments.get("name") or node["class_path"].rpartition(".")[2]).lower()


def next_version(folder: Path) -> str:
    """The name of a new run's folder: no run overwrites another one's checkpoints."""
    taken = [
        int(path.name.removeprefix("version_"))
        for path in folder.glob("version_*")
        if path.name[8:].isdigit()
    ]
    return f"version_{max(taken, default=-1) + 1}"


def resumed(ckpt_path: str | None, folder: Path, recipe: dict[str, Any]) -> Path | None:
    """The checkpoint to go on from, None for a new run.

    Raises:
        UserError: there is none, or it belongs to a run that was configured differently; what
            differs is named.
    """
    if ckpt_path is None:
        return None
    if ckpt_path == "last":
        found = sorted(
            folder.glob("version_*/last.ckpt"), key=lambda path: int(path.parent.name[8:])
        )
        if not found:
            raise UserError(
                f"--ckpt_path last: no last.ckpt of this run under {folder}; leave the option out"
                " to start"
            )
        path = found[-1]
    else:
        path = Path(ckpt_path)
    old = read_recipe(path)
    if recipe["training"]["inner_precision"] == "auto":
        # What the run began with, whatever is faster by now.
        began = old.get("training", {}).get("inner_precision", "trainer")
        recipe["training"]["inner_precision"] = began
    before, now = (flat(as_before(_comparable(found))) for found in (old, recipe))
    for name in sorted({*before, *now}):
        if before.get(name) != now.get(name):
            raise UserError(
                f"--ckpt_path {path}: that run had {name} = {before.get(name)!r}, this one"
                f" {now.get(name)!r}; give the same options, or start a new run without --ckpt_path"
            )
    return path


def _comparable(recipe: dict[str, Any]) -> dict[str, Any]:
    """What a resumed run must share: neither the places of data, nor what the plan says besides."""
    data = recipe["data"]
    recipe = {key: value for key, value in recipe.items() if key not in ("plan", "classes")}
    kept = {key: value for key, value in (data.get("init_args") or {}).items() if key not in PLACES}
    return {**recipe, "data": {**data, "init_args": kept}}
