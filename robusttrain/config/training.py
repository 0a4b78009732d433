"""From a command line of train.py to its plan."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields
from typing import Any

import pytorch_lightning as pl
from jsonargparse import ArgumentParser
from torch import nn

from robusttrain.config.build import build
from robusttrain.config.checkpoints import READER
from robusttrain.config.command_line import configurations, new_parser, plain, read, values_of
from robusttrain.config.optimizing import left_to_it, optimizer_named, spelt_out
from robusttrain.config.trainer import add_trainer
from robusttrain.core.errors import UserError, under
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


def settings_of(
    arguments: Sequence[str] = (), said: Sequence[Mapping[str, Any]] = ()
) -> dict[str, Any]:
    """What a command line says of the fields of the plan, as plain values; arguments as for
    `read_plan`.
    """
    arguments = spelt_out(arguments)
    optimizer, others = optimizer_named(arguments)
    if optimizer is not None:
        below = read(parser(), others, KINDS, DEFAULTS, said)
        if below.training.optimizer != optimizer:
            # The figures that a preset gives belong to its own optimizer.
            arguments = [*arguments, *left_to_it(arguments)]
    values = plain(read(parser(), arguments, KINDS, DEFAULTS, said))
    _one_length(arguments, configurations(arguments, said)[0], values)
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
    files = [node["trainer"] for node in nodes if isinstance(node.get("trainer"), dict)]
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
