"""From a command line of train.py to its plan."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields
from functools import cache
from pathlib import PurePath
from typing import Any

import pytorch_lightning as pl
from jsonargparse import ArgumentParser
from torch import nn

from robusttrain.config import presets
from robusttrain.config.build import build
from robusttrain.config.checkpoints import NOBODYS, READER
from robusttrain.config.command_line import (
    NOTHING,
    configurations,
    new_parser,
    plain,
    read,
    values_of,
)
from robusttrain.config.optimizing import left_to_it, optimizer_named, spelt_out
from robusttrain.config.trainer import add_trainer
from robusttrain.core.errors import OptionError, UserError, under
from robusttrain.data import ImageData
from robusttrain.defenses import Defense
from robusttrain.models.defended import DefendedClassifier
from robusttrain.training import RobustTraining
from robusttrain.training.optimizers import settled
from robusttrain.training.plan import TrainingPlan

KINDS = ("data", "model", "defense", "training")
DEFAULTS = {"data": "digits", "model": "resnet_small", "training": "standard"}
#: Defaults of Lightning's Trainer that are ours.
TRAINER = {
    "max_epochs": 30,
    "num_sanity_val_steps": 0,
    "enable_model_summary": False,
    "log_every_n_steps": 20,
}


def parser() -> ArgumentParser:
    """The options of train.py: the fields of its plan, and presets by name."""
    options = new_parser(
        prog="train.py", description="Train a robust classifier. Presets by name: --list shows all."
    )
    options.add_subclass_arguments(
        ImageData, "data", help="data set: a preset, YAML file or class path"
    )
    options.add_subclass_arguments(
        nn.Module, "model", help="network f_a: a preset, YAML file or class path"
    )
    options.add_argument(
        "--defense", type=Defense | None, default=None, help="what stands before it: likewise"
    )
    options.add_class_arguments(
        RobustTraining,
        "training",
        skip={"model", "num_classes", "seed"},
        instantiate=False,
        help="how it is trained",
    )
    add_trainer(options, TRAINER)
    options.add_class_arguments(TrainingPlan, skip={*KINDS, "trainer", "estimate"})
    options.add_argument(
        "--estimate", action="store_true", help="say what training would cost, and stop"
    )
    return options


#: Parsing leaves a parser as it was; studies read hundreds of plans.
_reader = cache(parser)


def settings_of(
    arguments: Sequence[str] = (), said: Sequence[Mapping[str, Any]] = ()
) -> dict[str, Any]:
    """What a command line says of the fields of the plan, as plain values; arguments as for
    `read_plan`.
    """
    arguments = spelt_out(arguments)
    optimizer, others = optimizer_named(arguments)
    if optimizer is not None:
        below = read(_reader(), others, KINDS, DEFAULTS, said)
        if below.training.optimizer != optimizer:
            # The figures that a preset gives belong to its own optimizer.
            arguments = [*arguments, *left_to_it(arguments)]
    values = plain(read(_reader(), arguments, KINDS, DEFAULTS, said))
    nodes, line = configurations(arguments, said)
    _one_length(line, nodes, values)
    _refuse_idle(line, nodes, values)
    _refuse_no_objective(line, nodes, values)
    _refuse_name(values["name"])
    if values["f_b_training"] != TrainingPlan.f_b_training:
        # Whether or not this defense needs one: a wrong name is a mistake.
        presets.find("training", values["f_b_training"], "--f_b_training")
    with under("--training"):
        values["training"] = settled(values["training"])
    return {each.name: values[each.name] for each in fields(TrainingPlan)}


def _one_length(
    arguments: Sequence[str], nodes: Sequence[Mapping[str, Any]], values: Mapping[str, Any]
) -> None:
    """Refuse whatever else says how long a training is, where its time is stated.

    The epochs of a preset do not count, and neither does our default in a configuration file:
    ``--print_config`` writes every default.
    """
    minutes = values["training"].get("minutes")
    if minutes is None:
        return
    files = [
        node["trainer"]
        for node in nodes
        if isinstance(node.get("trainer"), dict)
        # One that says all, the minutes too: what --print_config writes, presets' epochs included.
        and not (_complete(node, values) and node["training"]["minutes"] is not None)
    ]
    for key in ("max_epochs", "max_steps", "max_time"):
        unsaid = (None, -1, TRAINER.get(key))
        lengths = [part[key] for part in files if part.get(key) not in unsaid]
        lengths += values_of(arguments, f"--trainer.{key}")
        if key != "max_epochs" and values["trainer"].get(key) in unsaid:
            continue
        if lengths:
            raise UserError(
                f"--trainer.{key} {lengths[-1]}: --training.minutes {minutes:g} chooses the number"
                " of epochs; leave this out, or give --training.minutes null"
            )


def _complete(node: Mapping[str, Any], values: Mapping[str, Any]) -> bool:
    """Whether a file says every setting of the training, as ``--print_config`` writes them."""
    training = node.get("training")
    return isinstance(training, dict) and values["training"].keys() <= training.keys()


def _refuse_idle(
    arguments: Sequence[str], nodes: Sequence[Mapping[str, Any]], values: Mapping[str, Any]
) -> None:
    """Refuse an option that somebody gave, and that has no effect beside the others.

    What a preset says counts for nothing here, nor a file that says all: another option may have
    taken away what they rely on.
    """
    schedule, pictured = values["training"]["schedule"], values["pictures"]["images"] != 0
    looking: tuple[str, Callable[[Any], bool], str] = (
        "robust.every",
        lambda value: value != 0,
        "--robust.every 0 attacks no validation image: give --robust.every 1, or leave this out",
    )
    # --pictures shows one of these attacks, too.
    seen = ("robust.every", lambda value: value != 0 or pictured, looking[2])
    # Of an option: what it needs, and when that serves; what to do where it does not.
    needs: dict[tuple[str, str], tuple[str, Callable[[Any], bool], str]] = {
        ("robust", "attacks"): seen,
        ("robust", "epsilon"): seen,
        ("guard", "drop"): looking,
        ("guard", "fall"): looking,
        ("training", "warmup"): (
            "training.schedule",
            lambda value: value == "one_cycle",
            f"the schedule {schedule} does not rise for a share of the run: give"
            " --schedule.warmup_epochs, or --schedule one_cycle",
        ),
        ("training", "mixing_alpha"): (
            "training.mixing",
            lambda value: value not in (None, "none"),
            "nothing is mixed: give --training.mixing mixup or cutmix, or leave this out",
        ),
        ("extra", "share"): (
            "extra.root",
            lambda value: value is not None,
            "there are no further images: give --extra.root FOLDER, or leave this out",
        ),
        ("swa", "batches"): (
            "swa.start",
            lambda value: value is not None,
            "no mean of the weights is taken: give --swa.start EPOCH, or leave this out",
        ),
    }
    for (part, key), (needed, serves, fix) in needs.items():
        there, _, other = needed.partition(".")
        if serves(values[there][other]):
            continue
        option = f"--{part}.{key}"
        # A file that gives what the option needs makes sense; the line may take it away.
        files = [
            node
            for node in nodes
            if not _complete(node, values)
            and key in _said_of(node, part)
            and not serves(_said_of(node, there).get(other))
        ]
        if values_of(arguments, option) or files:
            raise OptionError(option, values[part][key], fix)


def _said_of(node: Mapping[str, Any], part: str) -> Mapping[str, Any]:
    """What a configuration says of a part's options; nothing where it names a preset."""
    said = node.get(part)
    return said if isinstance(said, dict) else {}


def _refuse_no_objective(
    arguments: Sequence[str], nodes: Sequence[Mapping[str, Any]], values: Mapping[str, Any]
) -> None:
    """Refuse ``null`` for the objective, which `RobustTraining` reads as clean training.

    A preset that was named along with it would lose its objective, and nobody would be told.
    """
    named = values_of(arguments, "--training.objective")
    files = [
        node
        for node in nodes
        if not _complete(node, values) and "objective" in _said_of(node, "training")
    ]
    null = (
        named[-1] in NOTHING
        if named
        else any(node["training"]["objective"] is None for node in files)
    )
    if null and values["training"]["objective"] is None:
        raise OptionError(
            "--training.objective",
            None,
            "without an objective nothing says what the weights minimise: give --training standard"
            " for clean images, or name another recipe",
        )


def _refuse_name(name: str | None) -> None:
    """Refuse a run's name under which its checkpoints would lie elsewhere, or not be found.

    A name with a slash is a folder in a folder.
    """
    if name is None:
        return
    parts = PurePath(name).parts
    if not parts:
        raise OptionError("--name", name, "must name a folder; leave it out for data-defense-model")
    if PurePath(name).is_absolute() or ".." in parts:
        fix = "would lie outside of --checkpoints and --logs: give a name, and those folders there"
        raise OptionError("--name", name, fix)
    if taken := {*parts} & {*NOBODYS, "f_b"}:
        fix = f"{min(taken)} is the folder of models that attacks and defenses train"
        raise OptionError("--name", name, f"{fix}: evaluations would not take this run for yours")


def build_training(
    model: Callable[[], DefendedClassifier],
    settings: dict[str, Any],
    seed: int,
    classes: int,
    where: str = "training",
) -> RobustTraining:
    """The LightningModule; the same seed gives the same initial weights.

    Args:
        model: builds what is trained, once the seed is set.
        settings: arguments of `RobustTraining`, but for the model.
        seed: of all randomness in training.
        classes: K.
        where: the option that the settings stand under, for error messages.
    """
    pl.seed_everything(seed, verbose=False)
    node = {
        "class_path": "robusttrain.training.RobustTraining",
        "init_args": {**settings, "seed": seed},
    }
    built: RobustTraining = build(node, where, given={"model": model(), "num_classes": classes})
    built.objective = built.objective.opened(READER)
    return built


def read_plan(
    arguments: Sequence[str] = (), said: Sequence[Mapping[str, Any]] = ()
) -> TrainingPlan:
    """The plan that a command line describes, or Python.

    Args:
        arguments: the command line.
        said: configurations as ``--config`` files hold them: presets' names stand for parts.

    Raises:
        UserError: in one line, the option, its value and the fix.
    """
    return TrainingPlan.from_json(settings_of(arguments, said))
