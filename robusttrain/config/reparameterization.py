"""From a command line of ``train.py --training reparameterization`` to how h is trained."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from jsonargparse import ArgumentParser, Namespace

from robusttrain.config.command_line import configurations, names_preset, new_parser, read
from robusttrain.config.evaluation import started_from
from robusttrain.config.trainer import add_trainer
from robusttrain.data import ImageData

#: Options of the trainer that h depends on.
DEPENDS = ("max_epochs", "precision", "limit_train_batches")


@dataclass(frozen=True)
class Budget:
    """The attacker's, for h.

    Args:
        width: channels inside h.
        depth: residual blocks of h.
        learning_rate: Adam's, at its highest.
        weight_decay: Adam's.
    """

    width: int = 64
    depth: int = 8
    learning_rate: float = 0.003
    weight_decay: float = 0.0001


def chosen(arguments: Sequence[str]) -> bool:
    """Whether a command line of train.py asks for this training."""
    return names_preset(arguments, "h")


def parser() -> ArgumentParser:
    """The options of this training."""
    options = new_parser(
        *("checkpoint", "checkpoints", "trust"),
        prog="train.py --training reparameterization",
        description=(
            "Train h, a differentiable stand-in for the g of a trained checkpoint, to attack"
            " f_a(h(x))."
        ),
    )
    options.add_subclass_arguments(
        ImageData, "data", help="data set; default: the checkpoint's own"
    )
    options.add_class_arguments(Budget, "h", instantiate=False)
    options.add_argument(
        "--output",
        type=str | None,
        default=None,
        help="file for h; default: where evaluate.py looks",
    )
    add_trainer(options, {"max_epochs": 10}, only={*DEPENDS, "accelerator", "enable_progress_bar"})
    return options


def configure(arguments: Sequence[str]) -> Namespace:
    """The configuration; data as the checkpoint's, unless given."""
    if {"--help", "-h"} & {*arguments}:
        parser().parse_args(["--help"])
    nodes, arguments = configurations(arguments)
    _, first = started_from(arguments, nodes, ("data",))
    return read(parser(), arguments, ("data", "training"), first, nodes)
