"""From checked configurations to objects.

A configuration node is ``{"class_path": ..., "init_args": {...}}``, as jsonargparse validates it.
Building is ours for two reasons: models follow the data set (class count, channels, image size),
and a checkpoint's configuration is a file from elsewhere, whose class paths must not reach outside
the packages that the user trusts.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from inspect import Parameter
from typing import Any

from torch import nn

from robusttrain.config.classes import (
    IN_FILE,
    UNFILLED,
    defaults_of,
    home,
    importable,
    makes,
    parts_of,
    resolve,
    trusted,
)
from robusttrain.core.errors import OptionError, UserError, first_line, under
from robusttrain.core.parts import class_name
from robusttrain.core.preparation import Preparation
from robusttrain.data import Facts
from robusttrain.models.defended import DefendedClassifier
from robusttrain.storage.raised import place, said

Node = dict[str, Any]

#: Shares of the size that weights are for: test images a quarter smaller, or half as large again,
#: are usual (timm's ``test_input_size``).
SMALLER, LARGER = 0.75, 1.5


def is_node(value: object) -> bool:
    """Whether ``value`` describes an object to build."""
    return isinstance(value, dict) and "class_path" in value


def build(
    node: Any,
    where: str = "",
    trust: Sequence[str] | None = None,
    kind: type = object,
    given: Mapping[str, Any] | None = None,
) -> Any:
    """The object that ``node`` describes, its parts first; values that are no nodes are returned as
    they are.

    Args:
        node: a node, a list or dict with nodes inside, or a plain value.
        where: the option that the node stands under, for error messages.
        trust: packages from which classes may come; None trusts every importable one.
        kind: what the class must be a subclass of.
        given: further arguments of the constructor, as objects.

    Raises:
        OptionError: a constructor refused a value; the option's full name is in it.
        UserError: a class that cannot be imported, is not trusted, or is of another kind.
    """
    if isinstance(node, list | tuple):
        return [build(item, f"{where}[{number}]", trust) for number, item in enumerate(node)]
    if not is_node(node):
        if isinstance(node, dict):
            return {key: build(item, f"{where}.{key}", trust) for key, item in node.items()}
        return node
    maker = resolve(node["class_path"], trust)
    # Also from a trusted package only objects of the expected kind: os.system is no network.
    no_part = UserError(
        f"{where or 'configuration'}: {node['class_path']} is not a {kind.__name__}"
    )
    if not makes(maker, kind) or (trust is not None and not _is_part(maker, node["class_path"])):
        raise no_part
    arguments = {
        key: build(value, f"{where}.{key}" if where else key, trust)
        for key, value in (node.get("init_args") or {}).items()
    }
    try:
        with under(where):
            built = maker(**arguments, **(given or {}))
    except TypeError as error:
        raise UserError(f"{where}: {first_line(error)}") from error
    except UserError:
        raise
    except Exception as error:
        if home(node["class_path"]) == "robusttrain":
            raise
        name = class_name(node["class_path"])
        fix = f"cannot be built: {said(error)}{place(error)}"
        raise OptionError(where or "class_path", name, fix) from error
    if not isinstance(maker, type) and not isinstance(built, nn.Module):
        raise UserError(f"{no_part}: the function returned a {type(built).__name__}")
    if not isinstance(built, kind):
        raise no_part
    return built


def trusted_nodes(node: Any, trust: Sequence[str]) -> Any:
    """A configuration from elsewhere, classes of files taken from the files that ``trust`` names.

    Raises:
        UserError: a class anywhere under ``node`` is not of a trusted package or file; nothing was
            imported.
    """
    if isinstance(node, list):
        return [trusted_nodes(item, trust) for item in node]
    if not isinstance(node, dict):
        return node
    checked = {key: trusted_nodes(item, trust) for key, item in node.items()}
    if "class_path" in node:
        checked["class_path"] = trusted(str(node["class_path"]), trust)
        arguments: dict[str, Any] = checked.get("init_args") or {}
        for key in parts_of(checked["class_path"]) & arguments.keys():
            arguments[key] = _trusted_names(arguments[key], trust)
        if "source" in checked:  # beside an attack
            checked["source"] = _trusted_names(checked["source"], trust)
    return checked


def _trusted_names(value: Any, trust: Sequence[str]) -> Any:
    """A part, or a list of them: a string in its place is a class, which would be imported."""
    if isinstance(value, list):
        return [_trusted_names(item, trust) for item in value]
    return trusted(value, trust) if isinstance(value, str) else value


def to_be_trusted(node: Any) -> list[str]:
    """What ``--trust`` has to name before the classes of a configuration are used by a checkpoint:
    packages, and files, by the way to them from here.
    """
    if isinstance(node, list):
        return [*dict.fromkeys(name for item in node for name in to_be_trusted(item))]
    if not isinstance(node, dict):
        return []
    names = to_be_trusted([*node.values()])
    class_path = node.get("class_path")
    if isinstance(class_path, str) and "." in class_path and home(class_path) != "robusttrain":
        match = IN_FILE.fullmatch(class_path)
        names.append(os.path.relpath(match["file"]) if match else home(class_path))
    return [*dict.fromkeys(names)]


def _is_part(maker: Callable[..., Any], class_path: str) -> bool:
    """Whether a class is one of the nouns that a checkpoint may name: a module, or a part of this
    framework. Of functions only those that a package or file of the user's wrote itself.
    """
    if isinstance(maker, type):
        return issubclass(maker, nn.Module) or maker.__module__.startswith("robusttrain.attacks.")
    own = importable(class_path).split(".")[0]
    return own != "robusttrain" and maker.__module__.split(".")[0] == own


def fit_to_data(node: Any, facts: Facts, where: str) -> None:
    """Fill class count, channels and image size of every network under ``node`` from the data set,
    in place.

    A value left at its default follows the data; one that was set to something else must agree with
    it.

    Raises:
        OptionError: a network was given a value that contradicts the data set.
    """
    if isinstance(node, list):
        for number, item in enumerate(node):
            fit_to_data(item, facts, f"{where}[{number}]")
    if not is_node(node):
        return
    arguments = node.setdefault("init_args", {})
    maker = resolve(node["class_path"])
    if makes(maker, nn.Module):
        defaults = defaults_of(maker)
        from_data = {
            "num_classes": facts.num_classes,
            "in_channels": facts.channels,
            "image_size": facts.image_size,
        }
        for name, fact in from_data.items():
            if name not in defaults:
                continue
            default = defaults[name]
            value = arguments.get(name, default)
            unfilled = default is Parameter.empty and value == UNFILLED
            if value not in (default, fact) and not unfilled:
                raise OptionError(
                    f"{where}.{name}",
                    value,
                    f"the data set has {fact}: leave it out, or change --data",
                )
            if default is not None:
                arguments[name] = fact
    for name, value in arguments.items():
        fit_to_data(value, facts, f"{where}.{name}")


def check_pretrained(model: nn.Module, facts: Facts, where: str = "--model") -> None:
    """Raise UserError unless the model brought trained weights, the last layer's included, for the
    data's number of classes. ``where`` is the option that named the model.
    """
    trained_for = getattr(model, "pretrained_classes", None)
    if trained_for is None:
        raise UserError(
            f"{where}: give its weights with --weights FILE; untrained networks are not evaluated"
        )
    if trained_for != facts.num_classes:
        raise UserError(
            f"{where}: its weights are for {trained_for} classes, and the data set has"
            f" {facts.num_classes}, so its last layer is untrained: change --data, or give"
            " --weights FILE"
        )


def other_pictures(
    model: nn.Module, size: int, prepared: Preparation | None, where: str = "--model"
) -> str | None:
    """What to tell of a model that brought its weights: that they are for images of a size that is
    far from these, or for pictures that are prepared in another way.

    Args:
        model: the classifier.
        size: height and width of the images in pixels.
        prepared: how the data prepare pictures; None where these are images already.
        where: the option that named the model.

    Raises:
        UserError: the model says what is neither a size nor a preparation.
    """
    trained_at = getattr(model, "pretrained_size", None)
    if trained_at is None:
        return None
    if not isinstance(trained_at, int) or trained_at < 1:
        fix = "give one whole number, height and width in pixels, or None"
        raise UserError(f"{where}: its pretrained_size is {trained_at!r}: {fix}")
    if not SMALLER * trained_at <= size <= LARGER * trained_at:
        return (
            f"{where}: its weights are for images of {trained_at} x {trained_at} pixels, and these"
            f" have {size} x {size}, where it may do far worse: images of a folder are resized by"
            f" --data.image_size {trained_at}"
        )
    theirs = getattr(model, "pretrained_on", None)
    if theirs is not None and not isinstance(theirs, Preparation):
        fix = "give a robusttrain.core.preparation.Preparation, or None"
        raise UserError(f"{where}: its pretrained_on is {theirs!r}: {fix}")
    if theirs is None or prepared is None or theirs.size != size or theirs == prepared:
        return None
    return (
        f"{where}: its weights are evaluated on pictures {theirs}, these are {prepared}, and"
        f" accuracies may differ by points: --data.resize {theirs.resize}"
        f" --data.interpolation {theirs.interpolation} does as its authors do"
    )


def build_defended(
    model: Node, defense: Node | None, trust: Sequence[str] | None = None
) -> DefendedClassifier:
    """The defended classifier that two nodes describe."""
    from robusttrain.defenses import Defense

    return DefendedClassifier(
        None if defense is None else build(defense, "defense", trust, Defense),
        build(model, "model", trust, nn.Module),
    )
