"""Attacks by name: from presets and ``--attack`` options to scenarios that are ready to run.

A preset holds the class and arguments of an attack, and beside them its ``source`` and, if the
source does not say it well enough, what the attacker ``knows``.
"""

from __future__ import annotations

import inspect
import json
import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import jsonargparse
import yaml
from jsonargparse import ArgumentParser

from robusttrain.attacks import Attack, Source
from robusttrain.config import presets
from robusttrain.config.build import build, resolve
from robusttrain.config.checkpoints import READER
from robusttrain.config.command_line import short, take
from robusttrain.config.suites import OPTIONS, suite, suite_settings
from robusttrain.core.errors import UserError, at_least, under
from robusttrain.evaluation import Scenario


def split_attacks(
    arguments: Sequence[str], options: Sequence[str] = OPTIONS
) -> tuple[list[str], list[tuple[str, str]], list[str]]:
    """Take ``--attack NAME``, ``--suite NAME`` and ``--attack.KEY VALUE`` out of a command line.

    Args:
        arguments: the command line.
        options: what a suite may set of the command's own options.

    Returns:
        Names of attacks in their order, overrides as (key, value), and what is left of the line.
    """
    names: list[str] = []
    overrides: list[tuple[str, str]] = []
    taken, rest = take(
        arguments,
        lambda option: option in ("--attack", "--suite") or option.startswith("--attack."),
    )
    for option, value in taken:
        if option == "--attack":
            names.append(value)
        elif option == "--suite":
            names.extend(suite(value))
            # Before the rest of the line, which overrides it.
            rest = [
                *(f"--{key}={setting}" for key, setting in suite_settings(value, options).items()),
                *rest,
            ]
        else:
            overrides.append((option.removeprefix("--attack."), value))
    return list(dict.fromkeys(names)), overrides, rest


_PLAIN_KEYS = ("class_path", "init_args", "source", "knows")
_TARGET = {"class_path": "robusttrain.attacks.Target"}


def _with_members(
    node: dict[str, Any], name: str, option: str, within: tuple[str, ...] = ()
) -> dict[str, Any]:
    """The node of an attack with the nodes of presets in place of the names of its members.

    A wrapper's members attack the wrapper's source: a preset that needs another one cannot be a
    member.
    """
    if not isinstance(arguments := node.get("init_args"), dict):
        return node

    def member(value: Any) -> Any:
        if isinstance(value, dict):
            return _with_members(value, name, option, within)
        if not isinstance(value, str):
            return value
        if value in within:
            raise UserError(
                f"{option} {name}: preset {value} is a member of itself: name another attack"
            )
        found = presets.read("attack", value, f"{option} {name}: member")
        source, own = found.pop("source", _TARGET), node.get("source", _TARGET)
        if source not in (_TARGET, own):
            raise UserError(
                f"{option} {name}: its members attack one source, {own.get('class_path')}, and"
                f" {value} needs {source.get('class_path')}: name that under 'source', or take a"
                " suite with survivors: true"
            )
        found.pop("knows", None)
        return _with_members({**found, "source": own}, name, option, (*within, value))

    def plain(value: Any) -> Any:
        return (
            {key: item for key, item in value.items() if key != "source"}
            if isinstance(value, dict)
            else value
        )

    filled = dict(arguments)
    if isinstance(arguments.get("attack"), str | dict):
        filled["attack"] = plain(member(arguments["attack"]))
    if isinstance(arguments.get("attacks"), list):
        filled["attacks"] = [plain(member(value)) for value in arguments["attacks"]]
    return {**node, "init_args": filled}


#: Where train.py takes an objective's class, and its inner attack; a wrapper has its objective
#: inside.
_OBJECTIVE = re.compile(r"--training(\.objective)+")
_INNER = re.compile(r"--training((?:\.objective)+)\.attack")
Fill = Callable[[dict[str, Any]], dict[str, Any]]


def name_inner_attacks(arguments: Sequence[str]) -> tuple[list[str], Fill]:
    """Take ``--training.objective.attack NAME`` out of a command line of train.py, where NAME is a
    preset's.

    The preset's source comes along, unless the line names one.

    Returns:
        What is left of the line, and what puts the attacks in their place in a configuration; it
        also replaces names of presets that stand there, under ``training``.
    """
    objectives, rest = take(arguments, lambda option: _OBJECTIVE.fullmatch(option) is not None)
    chosen, rest = take(rest, lambda option: _INNER.fullmatch(option) is not None)
    kept = [f"{option}={value}" for option, value in objectives]
    named: list[tuple[int, dict[str, Any]]] = []
    for option, value in chosen:
        if not _is_preset(value):
            kept.append(f"{option}={value}")
            continue
        # jsonargparse takes none from a nested option
        inner = _inner(value, option, nulls=not objectives)
        if any(argument.startswith(option.removesuffix("attack") + "source") for argument in rest):
            inner.pop("source", None)
        if objectives:  # no configuration says which class takes it
            source, attack = inner.pop("source", None), json.dumps(inner)
            kept.append(f"{option}={attack}")
            kept += (
                []
                if source is None
                else [f"{option.removesuffix('attack')}source={json.dumps(source)}"]
            )
        else:
            named.append((option.count(".objective"), inner))

    def fill(node: dict[str, Any]) -> dict[str, Any]:
        node = fill_inner_attacks(node)
        for depth, inner in named:
            place = node.get("training")
            for _ in range(depth):
                place = place.get("objective") if isinstance(place, dict) else None
                place = place.setdefault("init_args", {}) if isinstance(place, dict) else None
            if place is not None:
                attack = dict(inner)
                place.update({"source": attack.pop("source")} if "source" in attack else {})
                place["attack"] = attack
            elif "objective" in node.get("training", {}):
                raise UserError(
                    "--training" + ".objective" * depth + ".attack: there is no objective that deep"
                )
        return node

    return [*kept, *rest], fill


def fill_inner_attacks(node: dict[str, Any]) -> dict[str, Any]:
    """A configuration of train.py with the attacks of presets in place of their names, under
    ``training``.
    """

    def filled(value: Any) -> Any:
        if not isinstance(value, dict):
            return value
        found = {key: filled(item) for key, item in value.items()}
        attack = found.get("attack")
        if isinstance(attack, str) and _is_preset(attack):
            inner = _inner(attack, "training.objective.attack")
            source = inner.pop("source", None)
            found["attack"] = inner
            if source is not None:
                found.setdefault("source", source)
        return found

    return {key: filled(value) if key == "training" else value for key, value in node.items()}


def _is_preset(value: str) -> bool:
    """Whether the value of an option can only be a preset's name or file: no class path, no
    configuration.
    """
    named = re.fullmatch(r"[A-Za-z][\w-]*", value) is not None and value != "null"
    return named or value.endswith((".yaml", ".yml"))


def _inner(name: str, option: str, nulls: bool = True) -> dict[str, Any]:
    node = _with_members(presets.read("attack", name, option), name, option, (name,))
    node.pop("knows", None)
    # Defaults that are None as well: those of the attack whose place this one takes would stay.
    return dict(_with_own_defaults(node, (int, float, str, bool, *([type(None)] if nulls else []))))


def _override(node: dict[str, Any], path: list[str], value: Any) -> None:
    """Set a value deep inside a preset; ``init_args`` need not be named, and items of lists go by
    number.
    """
    key, *deeper = path
    if "class_path" in node and key not in _PLAIN_KEYS:
        node = node.setdefault("init_args", {})
    if not deeper:
        # A new class for a part takes its own arguments, not those of the old one.
        if key == "class_path" and node.get("class_path") != value:
            node.pop("init_args", None)
        node[key] = value
        return
    items = node.get(key)
    if isinstance(items, list) and deeper[0].isdigit() and len(deeper) > 1:
        number = int(deeper[0])
        if number >= len(items) or not isinstance(items[number], dict):
            raise UserError(f"{key}.{number}: there are {len(items)} of them, counted from 0")
        _override(items[number], deeper[1:], value)
        return
    if not isinstance(items, dict):
        node[key] = {}
    _override(node[key], deeper, value)


def stem(name: str) -> str:
    """What an attack is called in reports: a preset's name, or a file's."""
    return name.rpartition("/")[2].removesuffix(".yaml").removesuffix(".yml")


def scenarios(
    names: Sequence[str],
    overrides: Sequence[tuple[str, str]] = (),
    epsilon: float | None = None,
    option: str = "--attack",
) -> dict[str, Scenario]:
    """Attacks by name, ready to run; arguments as for ``attack_nodes``."""
    nodes = attack_nodes(names, overrides, epsilon, option)
    return {name: scenario(node, name, option) for name, node in nodes.items()}


def unopened(
    names: Sequence[str], overrides: Sequence[tuple[str, str]] = ()
) -> dict[str, Scenario]:
    """Attacks by name, to be looked at and not to be run: the files that their sources name need
    not be there.
    """
    return {name: checked(node, name) for name, node in attack_nodes(names, overrides).items()}


def attack_nodes(
    names: Sequence[str],
    overrides: Sequence[tuple[str, str]] = (),
    epsilon: float | None = None,
    option: str = "--attack",
) -> dict[str, dict[str, Any]]:
    """The configurations of attacks by name, from presets, overrides applied and not yet checked.

    Args:
        names: presets' names, or paths to YAML files (known by the file's name then).
        overrides: (key, value): "steps" for every attack, "bpda-eot.steps" for one of them.
        epsilon: radius of the threat for every attack; None leaves each preset's own.
        option: what the user typed to name them, for error messages.

    Raises:
        UserError: unknown preset, or a value that is no YAML.
    """
    nodes = {stem(name): name for name in names}
    read = {}
    for name, file in nodes.items():
        node = _with_members(presets.read("attack", file, option), name, option, (name,))
        # Classes first: an argument may be meant for the part that replaces another.
        for key, text in sorted(
            overrides, key=lambda override: not override[0].endswith("class_path")
        ):
            owner, _, inner = key.partition(".")
            if owner in nodes and inner:
                if owner != name:
                    continue
                key = inner
            try:
                value = yaml.safe_load(text)
            except yaml.YAMLError as error:
                raise UserError(f"{option}.{key} {text}: cannot be read as YAML") from error
            _override(node, key.split("."), value)
            node = _with_members(node, name, option, (name,))  # those that the override named
        if epsilon is not None:
            at_least("--epsilon" if option == "--attack" else "--robust.epsilon", epsilon, 0)
            _override(node, ["threat", "epsilon"], epsilon)
        read[name] = node
    return read


def scenario(node: dict[str, Any], name: str, option: str = "--attack") -> Scenario:
    """One attack from the content of its preset, with the models that it names; arguments as for
    `checked`.
    """
    found = checked(node, name, option)
    with under(f"{option}.{name}"):
        return replace(found, source=found.source.opened(READER))


def checked(node: dict[str, Any], name: str, option: str = "--attack") -> Scenario:
    """One attack from the content of its preset; no file that its source names is opened.

    Args:
        node: the preset.
        name: of the attack.
        option: what the user typed to name it.

    Raises:
        UserError: in one line, the option, its value and the fix.
    """
    parser = ArgumentParser(exit_on_error=False)
    parser.add_subclass_arguments(Attack, "attack", required=True)
    parser.add_subclass_arguments(Source, "source", required=True)
    node = _with_own_defaults(node)
    knows = node.pop("knows", "")
    source = node.pop("source", {"class_path": "robusttrain.attacks.Target"})
    try:
        parsed = parser.parse_object({"attack": node, "source": source}).as_dict()
    except (jsonargparse.ArgumentError, ValueError, TypeError) as error:
        told = short(str(error)).removeprefix("--attack").removeprefix("--").lstrip(".: ")
        raise UserError(
            f"{option}.{name}.{told}" if ": " in told else f"{option} {name}: {told}"
        ) from error
    with under(f"{option}.{name}"):
        return Scenario(
            build(parsed["attack"], kind=Attack),
            build(parsed["source"], "source", kind=Source),
            knows,
        )


def _with_own_defaults(node: Any, plain: tuple[type, ...] = (int, float, str, bool)) -> Any:
    """Nodes with the plain defaults of their own classes spelt out.

    jsonargparse would carry arguments over from the class that a part has by default: L2 with the
    radius of Linf.
    """
    if isinstance(node, list):  # a new one: parsing changes what it is given
        return [_with_own_defaults(item, plain) for item in node]
    if not isinstance(node, dict):
        return node
    filled = {key: _with_own_defaults(value, plain) for key, value in node.items()}
    if not isinstance(filled.get("class_path"), str):
        return filled
    given = filled.get("init_args") or {}
    try:
        parameters = inspect.signature(resolve(filled["class_path"])).parameters.values()
    except UserError:
        return filled  # jsonargparse says what is wrong with the class
    defaults = {item.name: item.default for item in parameters if isinstance(item.default, plain)}
    return {
        **filled,
        "init_args": {
            **defaults,
            **{key: _with_own_defaults(value, plain) for key, value in given.items()},
        },
    }
