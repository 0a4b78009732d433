"""From a command line of ``train.py --training denoiser`` to how the network of a defense is
trained.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from jsonargparse import ArgumentParser, Namespace

from robusttrain.config import presets
from robusttrain.config.command_line import names_preset, new_parser, plain, read
from robusttrain.config.trainer import add_trainer
from robusttrain.config.training import DEFAULTS
from robusttrain.data import ImageData
from robusttrain.training import PurifierTraining

#: Options of the trainer that the network depends on.
DEPENDS = ("max_epochs", "precision", "limit_train_batches")


def chosen(arguments: Sequence[str]) -> bool:
    """Whether a command line of train.py asks for this training."""
    return names_preset(arguments, "purifier")


def parser() -> ArgumentParser:
    """The options of this training."""
    options = new_parser(
        "checkpoints",
        prog="train.py --training denoiser",
        description="Train the network of a defense that purifies images.",
    )
    options.add_subclass_arguments(ImageData, "data", help="data set")
    options.add_class_arguments(
        PurifierTraining, "purifier", skip={"seed"}, instantiate=False, help="how it is trained"
    )
    options.add_argument("--seed", type=int, default=0, help="of all randomness in training")
    options.add_argument(
        "--output",
        type=str | None,
        default=None,
        help="file for the network; default: where the defense looks",
    )
    add_trainer(options, {"max_epochs": 30}, only={*DEPENDS, "accelerator", "enable_progress_bar"})
    return options


def configure(arguments: Sequence[str]) -> Namespace:
    """The configuration that a command line describes."""
    if {"--help", "-h"} & {*arguments}:
        parser().parse_args(["--help"])
    return read(parser(), arguments, ("data", "training"), {"data": DEFAULTS["data"]})


def preset(name: str) -> dict[str, Any]:
    """What a training preset says, with all defaults: "purifier" and "trainer"."""
    options = new_parser()
    options.add_class_arguments(PurifierTraining, "purifier", skip={"seed"}, instantiate=False)
    options.add_argument("--trainer.max_epochs", type=int, default=30)
    parsed = read(options, [f"--config={presets.find('training', name)}"], (), {})
    return {"purifier": plain(parsed.purifier), "trainer": plain(parsed.trainer)}
