"""From a command line of ``evaluate.py --models A B ...`` to its plan."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields

from jsonargparse import ArgumentParser

from robusttrain.attacks.sources.surrogates import TO_BE_TRAINED
from robusttrain.config.attacks import attack_nodes, spelt_out, split_attacks
from robusttrain.config.command_line import configurations, listed, new_parser, plain, read
from robusttrain.core.errors import UserError
from robusttrain.data import ImageData
from robusttrain.transfer.plan import TransferPlan

#: What a suite may set of these options; the command line overrides it.
SUITE_OPTIONS = ("epsilon", "held_out")


def chosen(arguments: Sequence[str]) -> bool:
    """Whether a command line of evaluate.py asks for transfer between several models."""
    named = any(option.partition("=")[0] == "--models" for option in arguments)
    return named or any("models" in node for node in configurations(arguments)[0])


def parser() -> ArgumentParser:
    """The options of evaluate.py for several models: the fields of their plan."""
    options = new_parser(
        *("attack", "suite", "trust"),
        prog="evaluate.py --models",
        description=(
            "Craft adversarial images on each of several models, and test them on all. Images that"
            " all models classify correctly count. --attack and --suite as without --models."
        ),
    )
    for name, help in (
        (
            "models",
            "two or more: model presets or YAML files with weights, checkpoints of train.py,"
            " models of the package, timm:NAME (pretrained)",
        ),
        ("targets", "those that are tested; default: all"),
        ("sources", "those that are crafted on; default: all"),
    ):
        options.add_argument(f"--{name}", type=str, nargs="+", default=None, help=help)
    options.add_subclass_arguments(
        ImageData, "data", help="data set: a preset, YAML file or class path"
    )
    own = {"models", "targets", "sources", "trust", "data", "attacks"}
    options.add_class_arguments(TransferPlan, skip=own)
    return options


def read_plan(arguments: Sequence[str]) -> TransferPlan:
    """The plan that a command line describes.

    Raises:
        UserError: in one line, the option, its value and the fix.
    """
    # Also behind an option that waits for its values
    if "--help" in arguments or "-h" in arguments:
        parser().parse_args(["--help"])
    nodes, arguments = configurations(arguments)
    names, overrides, rest = split_attacks(spelt_out(arguments, nodes), nodes, SUITE_OPTIONS)
    config = read(parser(), rest, ("data",), {"data": "imagenet"}, nodes)
    attacks = attack_nodes(names or ["fgsm"], overrides, config.epsilon)
    for name, node in attacks.items():
        if TO_BE_TRAINED in str(node):
            raise UserError(
                f"--attack {name}: brings a source model of its own; with --models, the models are"
                " sources"
            )
    said = plain(config)
    said |= {"attacks": attacks, "models": config.models or [], "trust": listed(config.trust)}
    return TransferPlan(**{each.name: said[each.name] for each in fields(TransferPlan)})
