"""From objects back to the nodes that describe them, for plans of what Python built."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from typing import Any

from torch import nn

from robusttrain import attacks, data, defenses, models
from robusttrain.evaluation import Scenario
from robusttrain.evaluation.plan import Node
from robusttrain.storage.made_of import told

#: Rooms whose public names stand for where things are defined.
ROOMS = (attacks, defenses, models, data)
PLAIN = (str, int, float, bool, type(None))


def path_of(cls: type) -> str:
    """The name under which a class can be imported, the shorter one if there are two."""
    for room in ROOMS:
        if vars(room).get(cls.__name__) is cls:
            return f"{room.__name__}.{cls.__name__}"
    return f"{cls.__module__}.{cls.__qualname__}"


def described(value: Any) -> Any:
    """Plain values for a plan: a dataclass as its node, a module by its class alone, anything else
    by its class and what it holds.
    """
    if isinstance(value, PLAIN):
        return value
    if isinstance(value, Mapping):
        return {str(key): described(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [described(item) for item in value]
    node: Node = {"class_path": path_of(type(value))}
    if is_dataclass(value) and not isinstance(value, nn.Module):
        arguments = {
            each.name: described(vars(value)[each.name]) for each in fields(value) if each.init
        }
        node["init_args"] = arguments
    elif own := {} if isinstance(value, nn.Module) else getattr(value, "__dict__", {}):
        node["attributes"] = {name: told(item) for name, item in own.items()}
    return node


def scenario_node(scenario: Scenario) -> Node:
    """The node of an attack with its source, as a preset would have it."""
    node: Node = {**described(scenario.attack), "source": described(scenario.source)}
    return {**node, "knows": scenario.knows} if scenario.knows else node
