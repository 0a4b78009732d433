"""From a command line of ``train.py --training reparameterization`` to how h is trained."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from jsonargparse import ArgumentParser, Namespace

from robusttrain.config import presets
from robusttrain.config.build import check_trust
from robusttrain.config.checkpoints import newest, read_recipe
from robusttrain.config.command_line import config_files, listed, new_parser, read, take
from robusttrain.config.trainer import add_trainer
from robusttrain.data import ImageData

#: Options of the trainer that h depends on.
DEPENDS = ("max_epochs", "precision", "limit_train_batches")
#: The attacker's budget for h; ``--h.KEY`` overrides.
DEFAULTS: dict[str, Any] = {"width": 64, "depth": 8, "learning_rate": 0.003, "weight_decay": 0.0001}


def chosen(arguments: list[str]) -> bool:
    """Whether a command line of train.py asks for this training."""
    taken, _ = take(arguments, lambda option: option == "--training")
    named = [value for _, value in taken if "." not in value or value.endswith((".yaml", ".yml"))]
    return any("h" in presets.read("training", name) for name in named)


def parser() -> ArgumentParser:
    """The options of this training."""
    options = new_parser(
        prog="train.py --training reparameterization",
        description=(
            "Train h, a differentiable stand-in for the g of a trained checkpoint, to attack"
            " f_a(h(x))."
        ),
    )
    options.add_argument(
        "--checkpoint",
        type=str | None,
        default=None,
        help="file that train.py left; default: newest",
    )
    options.add_argument(
        "--checkpoints", type=str, default="checkpoints", help="folder for checkpoints"
    )
    options.add_argument(
        "--trust", type=list[str] | str, default=[], help="packages that a checkpoint may name"
    )
    options.add_subclass_arguments(
        ImageData, "data", help="data set; default: the checkpoint's own"
    )
    options.add_argument("--h.width", type=int, default=DEFAULTS["width"], help="channels inside h")
    options.add_argument(
        "--h.depth", type=int, default=DEFAULTS["depth"], help="residual blocks of h"
    )
    options.add_argument(
        "--h.learning_rate",
        type=float,
        default=DEFAULTS["learning_rate"],
        help="Adam's, at its highest",
    )
    options.add_argument(
        "--h.weight_decay", type=float, default=DEFAULTS["weight_decay"], help="Adam's"
    )
    options.add_argument(
        "--output",
        type=str | None,
        default=None,
        help="file for h; default: where evaluate.py looks",
    )
    add_trainer(options, {"max_epochs": 10}, only={*DEPENDS, "accelerator", "enable_progress_bar"})
    return options


def configure(arguments: list[str]) -> Namespace:
    """The configuration; data as the checkpoint's, unless given."""
    if {"--help", "-h"} & {*arguments}:
        parser().parse_args(["--help"])
    wanted = ("--checkpoint", "--checkpoints", "--trust")
    files, _ = config_files(arguments)
    given: dict[str, Any] = {}
    for file in files:
        node = presets.read_yaml(file, "--config")
        given |= {f"--{key}": value for key, value in node.items() if f"--{key}" in wanted}
    given |= dict(take(arguments, lambda option: option in wanted)[0])
    path = (
        Path(given["--checkpoint"])
        if "--checkpoint" in given
        else newest(given.get("--checkpoints", "checkpoints"))
    )
    recipe = read_recipe(path)
    check_trust([recipe["data"]], ["robusttrain", *listed(given.get("--trust"))])
    return read(parser(), arguments, ("data", "training"), {"data": recipe["data"]})
