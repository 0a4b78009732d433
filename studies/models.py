"""Trains a study's models, each once: what one study trained the others find by its fingerprint."""

from __future__ import annotations

import shlex
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import robusttrain
from robusttrain.commands import train
from robusttrain.config.build import build, build_defended, fit_to_data
from robusttrain.config.training import build_training, settings_of
from robusttrain.core.console import say
from robusttrain.data import ImageData
from robusttrain.storage.files import write_json
from robusttrain.storage.locks import alone
from robusttrain.storage.weights import save_tensors
from robusttrain.training import RobustTraining
from studies.parts import Arguments, Text, Training, trainings


@dataclass(frozen=True)
class Models:
    """The folder of trained models.

    Args:
        folder: one subfolder for each model, with train.py's checkpoints and ``training.json``,
            which is written last.
        logs: for TensorBoard.
    """

    folder: Path
    logs: Path

    def found(self, training: Training) -> bool:
        """Whether it was trained to the end."""
        return (self.folder / training.name / "training.json").is_file()

    def checkpoint(self, training: Training) -> Path:
        """What its last epoch left; h is its weights alone."""
        if training.is_h:
            return self.weights(training)
        versions = (self.folder / training.name).glob("version_*/last.ckpt")
        return max(versions, key=lambda path: int(path.parent.name.removeprefix("version_")))

    def weights(self, training: Training) -> Path:
        """Its network's weights alone."""
        return self.folder / training.name / "weights.safetensors"

    def command(self, arguments: Arguments) -> list[str]:
        """The arguments as a user types them, with the files that trained models left."""
        typed = []
        for position, argument in enumerate(arguments):
            if isinstance(argument, Training):
                before = str(arguments[position - 1]) if position else ""
                argument = (
                    self.weights(argument)
                    if before.endswith("weights")
                    else self.checkpoint(argument)
                )
            if isinstance(argument, Text):
                argument = argument.pattern % tuple(map(str, map(self.checkpoint, argument.models)))
            typed.append(str(argument))
        return typed

    def train(self, training: Training, wait: bool = True) -> None:
        """Train it unless it is there, from where an earlier attempt stopped.

        Args:
            training: it, whose own parts are there or trained by another process.
            wait: for another process that trains it, or a part of it; otherwise leave it to that
                one.
        """
        if not wait and not all(map(self.found, trainings(training.arguments))):
            return
        with alone(self.folder / training.name, training.label, say, wait) as held:
            if not held or self.found(training):
                return
            own = self.folder / training.name
            arguments = [
                *self.command(training.arguments),
                "--trainer.max_epochs",
                str(training.epochs),
            ]
            start = time.monotonic()
            if training.is_h:
                arguments += ["--output", str(self.weights(training))]
                interruptible(train.run, arguments)
            elif training.epochs:
                places = [
                    "--checkpoints",
                    str(self.folder),
                    "--logs",
                    str(self.logs),
                    "--name",
                    training.name,
                ]
                resume = ["--ckpt_path", "last"] if any(own.glob("version_*/last.ckpt")) else []
                interruptible(train.run, [*arguments, *places, *resume])
                save_tensors(
                    robusttrain.load(self.checkpoint(training)).classifier, self.weights(training)
                )
                arguments += places
            else:
                save_tensors(initial_network(arguments), self.weights(training))
            command = (
                shlex.join(["python", "train.py", *arguments])
                if training.epochs
                else "initial weights, seed 0"
            )
            told = {
                "label": training.label,
                "command": command,
                "seconds": round(time.monotonic() - start, 1),
            }
            write_json(told, own / "training.json")


def interruptible(command: Callable[[list[str]], None], arguments: list[str]) -> None:
    """Run a command of train.py or evaluate.py; Lightning's exit on Ctrl-C becomes an interruption
    again.
    """
    try:
        command(arguments)
    except SystemExit as stopped:
        raise KeyboardInterrupt from stopped


def configuration(arguments: Sequence[str]) -> tuple[dict[str, Any], ImageData]:
    """What a command line of train.py configures, as plain dicts, and its data module."""
    config = settings_of(list(arguments))
    data: ImageData = build(config["data"], "data", kind=ImageData)
    for part in ("model", "defense"):
        fit_to_data(config[part], data.facts(), part)
    return config, data


def initial_network(arguments: Sequence[str]) -> Any:
    """The network with which the training of these arguments starts."""
    training, _ = initial_training(arguments)
    return training.model.classifier


def initial_training(arguments: Sequence[str]) -> tuple[RobustTraining, ImageData]:
    """What the training of these arguments starts with, without a defense; and its data."""
    config, data = configuration(arguments)
    training = build_training(
        lambda: build_defended(config["model"], None),
        config["training"],
        config["seed"],
        data.facts().num_classes,
    )
    return training, data
