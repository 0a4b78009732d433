"""From checked configurations to objects.

A configuration node is ``{"class_path": ..., "init_args": {...}}``, as jsonargparse validates it.
Building is ours for two reasons: models follow the data set (class count, channels, image size),
and a checkpoint's configuration is a file from elsewhere, whose class paths must not reach outside
the packages that the user trusts.
"""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Mapping, Sequence
from typing import Any

from torch import nn

from robusttrain.core.errors import OptionError, UserError, under
from robusttrain.data import Facts
from robusttrain.models.defended import DefendedClassifier

Node = dict[str, Any]


def is_node(value: object) -> bool:
    """Whether ``value`` describes an object to build."""
    return isinstance(value, dict) and "class_path" in value


def resolve(class_path: str, trust: Sequence[str] | None = None) -> type:
    """The class of that name.

    Args:
        class_path: "package.module.Class".
        trust: packages from which classes may come; None trusts every importable one.
    """
    if trust is not None and class_path.split(".")[0] not in trust:
        raise _untrusted(class_path)
    module_name, _, name = class_path.rpartition(".")
    try:
        found = getattr(importlib.import_module(module_name), name)
    except (ImportError, AttributeError, ValueError) as error:
        raise UserError(f"class {class_path!r} cannot be imported: {error}") from error
    if not inspect.isclass(found):
        raise UserError(f"{class_path!r} is not a class")
    return found


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
    found = resolve(node["class_path"], trust)
    # Also from a trusted package only objects of the expected kind: os.system is no network.
    if not issubclass(found, kind) or (trust is not None and not _is_part(found)):
        raise UserError(
            f"{where or 'configuration'}: {node['class_path']} is not a {kind.__name__}"
        )
    arguments = {
        key: build(value, f"{where}.{key}" if where else key, trust)
        for key, value in (node.get("init_args") or {}).items()
    }
    try:
        with under(where):
            return found(**arguments, **(given or {}))
    except TypeError as error:
        raise UserError(f"{where}: {error}") from error


def check_trust(node: Any, trust: Sequence[str]) -> None:
    """Raise UserError if a class anywhere under ``node`` is not of a trusted package; nothing is
    imported.
    """
    if isinstance(node, dict):
        if "class_path" in node and str(node["class_path"]).split(".")[0] not in trust:
            raise _untrusted(node["class_path"])
        node = list(node.values())
    if isinstance(node, list):
        for item in node:
            check_trust(item, trust)


def _untrusted(class_path: str) -> UserError:
    package = str(class_path).split(".")[0]
    return UserError(
        f"class {class_path!r} comes from a package that is not trusted; if you know it, name the"
        f" package: --trust {package} (robusttrain.load(..., trust=[...]))"
    )


def _is_part(found: type) -> bool:
    """Whether a class is one of the nouns that a checkpoint may name: a module, or a part of this
    framework.
    """
    return issubclass(found, nn.Module) or found.__module__.startswith("robusttrain.attacks.")


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
    found = resolve(node["class_path"])
    if issubclass(found, nn.Module):
        parameters = inspect.signature(found).parameters
        known = {
            "num_classes": facts.num_classes,
            "in_channels": facts.channels,
            "image_size": facts.image_size,
        }
        for name, fact in known.items():
            if name not in parameters:
                continue
            default = parameters[name].default
            value = arguments.get(name, default)
            if value not in (default, fact):
                raise OptionError(
                    f"{where}.{name}",
                    value,
                    f"the data set has {fact}: leave it out, or change --data",
                )
            if default is not None:
                arguments[name] = fact
    for name, value in arguments.items():
        fit_to_data(value, facts, f"{where}.{name}")


def check_pretrained(model: nn.Module, classes: int) -> None:
    """Raise UserError unless the model brought trained weights, the last layer's included, for this
    many classes.
    """
    known = getattr(model, "pretrained_classes", None)
    if known is None:
        raise UserError(
            "--model: give its weights with --weights FILE; untrained networks are not evaluated"
        )
    if known != classes:
        raise UserError(
            f"--model: its weights are for {known} classes, and the data set has {classes}, so its"
            " last layer is untrained: change --data, or give --weights FILE"
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
