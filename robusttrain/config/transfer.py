"""From a command line of ``evaluate.py --models A B ...`` to its plan."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import fields
from itertools import takewhile
from pathlib import Path
from typing import Any

from jsonargparse import ArgumentParser

from robusttrain.attacks.sources.surrogates import TO_BE_TRAINED
from robusttrain.config import presets
from robusttrain.config.attacks import attack_nodes, radii, spelt_out, split_attacks
from robusttrain.config.build import trusted_nodes
from robusttrain.config.checkpoints import read_recipe
from robusttrain.config.command_line import (
    configurations,
    listed,
    new_parser,
    plain,
    read,
    take,
    values_of,
)
from robusttrain.config.origins import trained_node
from robusttrain.config.suites import OF_TRANSFER
from robusttrain.core.errors import UserError
from robusttrain.data import ImageData
from robusttrain.evaluation.plan import Node
from robusttrain.storage import packaged
from robusttrain.transfer.plan import TransferPlan


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


def models_of(arguments: Sequence[str], nodes: Sequence[Mapping[str, Any]]) -> list[str]:
    """What ``--models`` names, else the last configuration file that names any."""
    found = [node["models"] for node in nodes if node.get("models")]
    for place, option in enumerate(arguments):
        if option == "--models":
            found.append(
                [*takewhile(lambda each: not each.startswith("--"), arguments[place + 1 :])]
            )
    return [*map(str, found[-1])] if found and isinstance(found[-1], list) else []


def trusted_here(arguments: Sequence[str], nodes: Sequence[Mapping[str, Any]]) -> list[str]:
    """What ``--trust`` names, here and in configuration files, before the line is read as a
    whole.
    """
    given, _ = take(arguments, lambda option: option == "--trust")
    said = [{"trust": node["trust"]} for node in nodes if "trust" in node]
    line = [f"{option}={value}" for option, value in given]
    return listed(read(new_parser("trust"), line, (), {}, said).trust)


def known(specification: str) -> None:
    """Raise UserError unless a name is that of a model: before data are looked for."""
    recorded = packaged.is_packaged(specification) or specification.endswith(".ckpt")
    if not recorded and trained_node(specification) is None:
        presets.find("model", specification, "--models")


def data_of(models: Iterable[str], trust: Sequence[str] = ()) -> Node | None:
    """The data set on which all those models were trained that say so; None where they differ, or
    none of them says.

    Args:
        models: as ``--models`` has them.
        trust: packages and files besides robusttrain whose classes a checkpoint may name.

    Raises:
        UserError: a class that is not trusted; nothing was imported.
    """
    found: list[Node] = []
    for each in models:
        if packaged.is_packaged(each) or (each.endswith(".ckpt") and Path(each).is_file()):
            node = read_recipe(each).get("data")
            if node and node not in found:
                found.append(node)
    kinds = {(node["class_path"], (node.get("init_args") or {}).get("root")) for node in found}
    trusted: Node | None = None
    if len(kinds) == 1:
        trusted = trusted_nodes(found[0], ["robusttrain", *trust])
    return trusted


def of_another_model(attack: str) -> UserError:
    """The error of an attack that differentiates another model than those of the plan: its rows
    would say that the images come from these.
    """
    return UserError(
        f"--attack {attack}: brings a source model of its own; with --models, the models are"
        " sources"
    )


def read_plan(arguments: Sequence[str]) -> TransferPlan:
    """The plan that a command line describes.

    Raises:
        UserError: in one line, the option, its value and the fix.
    """
    # Also behind an option that waits for its values
    if "--help" in arguments or "-h" in arguments:
        parser().parse_args(["--help"])
    nodes, arguments = configurations(arguments)
    names, overrides, rest = split_attacks(spelt_out(arguments, nodes), nodes, OF_TRANSFER)
    models = models_of(rest, nodes)
    for each in models:
        known(each)
    chosen = values_of(rest, "--data") or any("data" in node for node in nodes)
    # Checkpoints are read for it, which takes a while.
    data = None if chosen else data_of(models, trusted_here(rest, nodes))
    config = read(parser(), rest, ("data",), {"data": data or "imagenet"}, nodes)
    epsilon, of_suite = radii(arguments, nodes, config.epsilon)
    attacks = attack_nodes(names or ["fgsm"], overrides, epsilon, of_suite=of_suite)
    for name, node in attacks.items():
        if TO_BE_TRAINED in str(node):
            raise of_another_model(name)
    said = plain(config)
    if of_suite is not None and overrides:
        said["epsilon"] = None  # what the attacks say themselves counts
    said |= {"attacks": attacks, "models": config.models or [], "trust": listed(config.trust)}
    return TransferPlan(**{each.name: said[each.name] for each in fields(TransferPlan)})
