"""A preset's name wherever a part is named: on the command line, in files, inside other parts.

Where a class is expected of which there are presets (`KINDS`), a name stands for the preset's
content, and so does a path to a YAML file; a mapping may say ``like: NAME`` and only what is
different. `ByName` teaches that to jsonargparse, whose parsers of inner arguments are of the same
class as the outermost one, so that it holds at every depth.
"""

from __future__ import annotations

import copy
import json
import re
from collections.abc import Container, Iterator, Mapping, Sequence
from itertools import pairwise
from typing import Any

import yaml
from jsonargparse import ArgumentParser, Namespace, set_loader
from torch import nn

from robusttrain.attacks import Attack
from robusttrain.config import presets, reading
from robusttrain.config.classes import classes_in, defaults_of, parts_of, resolve
from robusttrain.config.numbers import number, takes_numbers
from robusttrain.config.origins import (
    checked_nodes,
    checked_value,
    from_elsewhere,
    is_class_path,
    node_of,
)
from robusttrain.core.errors import UserError
from robusttrain.core.parts import class_name
from robusttrain.data import ImageData
from robusttrain.defenses import Defense
from robusttrain.training import TrainingObjective

#: Of which class a preset of which kind is. An objective is that of a training preset.
KINDS: dict[type, str] = {
    ImageData: "data",
    nn.Module: "model",
    Defense: "defense",
    TrainingObjective: "training",
    Attack: "attack",
}
#: Defaults to spell out for a part by name. None as well: that of the part whose place it takes
#: would stay.
SPELT = (int, float, str, bool, type(None))
#: The source of attacks that name none.
TARGET = {"class_path": "robusttrain.attacks.Target"}


def is_name(kind: str, value: Any) -> bool:
    """Whether a value that stands for a part can only be a preset's name, or a file; class names
    begin with a capital letter, and class paths have dots. Or the name of what comes from elsewhere
    (`origins`).
    """
    if not isinstance(value, str) or value in ("null", "None"):
        return False
    if from_elsewhere(kind, value):
        return True
    if value.endswith((".yaml", ".yml")) or re.fullmatch(r"[a-z][\w-]*", value):
        return True
    return presets.named(kind, value) is not None


def named(kind: str, value: Any) -> bool:
    """Whether ``value`` stands for a part by the name of a preset, or says that it is like one."""
    return is_name(kind, value) or (isinstance(value, dict) and "like" in value)


def content(kind: str, value: Any, option: str) -> dict[str, Any]:
    """The whole content of the preset that a `named` value stands for, what it says itself laid
    over.

    Args:
        kind: of the preset.
        value: a name, a class path, or a mapping with ``like``.
        option: what the user typed, for error messages.

    Raises:
        UserError: no such preset; the nearest names are suggested.
    """
    if isinstance(value, str):
        if not from_elsewhere(kind, value) and not is_class_path(value):
            return presets.read(kind, value, option)
        presets.refuse_key(kind, value, option)
        try:
            node = node_of(kind, value)
        except UserError as error:
            raise UserError(f"{option}: {error}") from error
        if kind == "attack":
            return node
        return {kind: {"objective": node} if kind == "training" else node}
    own = {key: item for key, item in value.items() if key != "like"}
    if not is_name(kind, value["like"]):
        raise UserError(f"{option}.like = {value['like']!r}: must be a preset's name or file")
    base = content(kind, value["like"], option)
    laid: dict[str, Any] = presets.laid_over(base, own if kind == "attack" else {kind: own})
    return laid


def part(kind: str, value: Any, option: str) -> Any:
    """The node of one part that a `named` value stands for.

    Raises:
        UserError: no such preset, or one that says more than the part.
    """
    if kind == "training":  # what stands in such a place is the objective
        name = value["like"] if isinstance(value, dict) else value
        node = (content(kind, name, option).get("training") or {}).get("objective")
        if node is None:
            raise UserError(f"{option} {name}: that training preset names no objective")
        if name is value:
            return node
        return presets.laid_over(node, {k: item for k, item in value.items() if k != "like"})
    node = content(kind, value, option)
    if kind == "attack":
        return node
    if more := sorted(node.keys() - {kind}):
        raise UserError(f"{option} {value}: the preset says {more[0]} besides, which has no place")
    return node.get(kind)


def with_members(
    node: dict[str, Any],
    name: str,
    option: str,
    within: tuple[str, ...] = (),
    source: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """The node of an attack with the nodes of presets in place of the names of its members.

    A wrapper's members attack the wrapper's source: a preset that needs another one cannot be a
    member.

    Args:
        node: of the attack.
        name: of the attack, for error messages.
        option: what the user typed, for error messages.
        within: presets that this one is a member of.
        source: of the attack, where the node does not say it.
    """
    if not isinstance(arguments := node.get("init_args"), dict):
        return node
    own = node.get("source", source or TARGET)

    def member(value: Any) -> Any:
        if not named("attack", value):
            if not isinstance(value, dict):
                return value
            return with_members(value, name, option, within, own)
        preset = value["like"] if isinstance(value, dict) else value
        if preset in within:
            raise UserError(
                f"{option} {name}: preset {preset} is a member of itself: name another attack"
            )
        whole = content("attack", value, f"{option} {name}: member")
        theirs = whole.pop("source", TARGET)
        if theirs not in (TARGET, own):
            raise UserError(
                f"{option} {name}: its members attack one source, {own.get('class_path')}, and"
                f" {preset} needs {theirs.get('class_path')}: name that under 'source', or take a"
                " suite with survivors: true"
            )
        whole.pop("knows", None)
        return with_members(whole, name, option, (*within, preset), own)

    def plain(value: Any) -> Any:
        if not isinstance(value, dict):
            return value
        return {key: item for key, item in value.items() if key != "source"}

    filled = dict(arguments)
    if isinstance(arguments.get("attack"), str | dict):
        filled["attack"] = plain(member(arguments["attack"]))
    if isinstance(arguments.get("attacks"), list):
        filled["attacks"] = [plain(member(value)) for value in arguments["attacks"]]
    return {**node, "init_args": filled}


def with_own_defaults(node: Any, plain: tuple[type, ...] = (int, float, str, bool)) -> Any:
    """Nodes with the plain defaults of their own classes spelt out.

    jsonargparse would carry arguments over from the class that a part has by default: L2 with the
    radius of Linf.
    """
    if isinstance(node, list):  # a new one: parsing changes what it is given
        return [with_own_defaults(item, plain) for item in node]
    if not isinstance(node, dict):
        return node
    filled = {key: with_own_defaults(value, plain) for key, value in node.items()}
    if not isinstance(filled.get("class_path"), str):
        return filled
    given = filled.get("init_args") or {}
    try:
        own = defaults_of(resolve(filled["class_path"]))
    except UserError:
        return filled  # jsonargparse says what is wrong with the class
    for key in parts_of(filled["class_path"]) & given.keys():  # named by its class alone
        value = given[key]
        given = {**given, key: {"class_path": value} if names_class(value) else value}
    defaults = {name: value for name, value in own.items() if isinstance(value, plain)}
    return {
        **filled,
        "init_args": {
            **defaults,
            **{key: with_own_defaults(value, plain) for key, value in given.items()},
        },
    }


def names_class(value: Any) -> bool:
    """By the capital that classes begin with, and presets do not."""
    return isinstance(value, str) and class_name(value)[:1].isupper()


#: Of parsers that read YAML as presets are read.
MODE = "robusttrain"
set_loader(MODE, reading.read, (yaml.YAMLError,))


class ByName(ArgumentParser):
    """A parser that takes the names of presets for parts of its arguments."""

    def __init__(self, *args: Any, parser_mode: str = MODE, **options: Any) -> None:
        super().__init__(*args, parser_mode=parser_mode, **options)

    def parse_args(  # type: ignore[override]
        self,
        args: Sequence[str] | None = None,
        namespace: Namespace | None = None,
        **options: Any,
    ) -> Namespace:
        """As jsonargparse's; ``--OPTION=NAME`` stands for the content of the preset."""
        kinds, numeric, meant = dict(self._kinds()), {*self._numeric()}, []
        for before, argument in pairwise(["", *(args or ())]):
            option, has_value, text = argument.partition("=")
            name = option[2:]
            _check(*((option, text) if has_value else (before, argument)), numeric)
            if before[2:] in numeric:  # its value stands apart
                meant.append(_read(argument))
            elif name in numeric and has_value:
                meant.append(f"{option}={_read(text)}")
            elif name in kinds and (parts := self._meant(name, _value(text), kinds)):
                namespace = _without(namespace, parts)
                meant += [f"--{key}={json.dumps(item)}" for key, item in parts.items()]
            else:
                meant.append(argument)
        parsed: Namespace = super().parse_args(
            None if args is None else meant, namespace, **options
        )
        return parsed

    def parse_object(
        self, obj: Namespace | dict[str, Any], namespace: Namespace | None = None, **options: Any
    ) -> Namespace:
        """As jsonargparse's; the name of a preset stands for its content."""
        obj, changed = self.with_parts(obj)
        parsed: Namespace = super().parse_object(obj, _without(namespace, changed), **options)
        return parsed

    def with_parts(self, obj: Any) -> tuple[Any, dict[str, Any]]:
        """A configuration with the content of presets in place of their names, at this depth; and
        what changed, by its option.
        """
        obj = obj.clone() if isinstance(obj, Namespace) else copy.deepcopy(obj)
        kinds, changed = dict(self._kinds()), {}
        for name in self._numeric():
            place, key = _place(obj, name)
            if place is not None:
                place[key] = number(place[key])
        for name in kinds:
            place, key = _place(obj, name)
            if place is None:
                continue
            value = place[key].as_dict() if isinstance(place[key], Namespace) else place[key]
            said = place.get("source")
            said = said.as_dict() if isinstance(said, Namespace) else said
            for option, item in self._meant(name, value, kinds, said).items():
                last = option.rpartition(".")[2]
                if last == key or last not in place:
                    changed[option] = place[last] = item
        return obj, changed

    def _numeric(self) -> Iterator[str]:
        """The arguments that are numbers."""
        for action in self._actions:
            if takes_numbers(getattr(action, "_typehint", None) or action.type):
                yield action.dest

    def _kinds(self) -> Iterator[tuple[str, str]]:
        """The arguments that are parts, and the kind of their presets."""
        for action in self._actions:
            for each in classes_in(getattr(action, "_typehint", None)):
                if each in KINDS:
                    yield action.dest, KINDS[each]

    def _meant(
        self, name: str, value: Any, kinds: Mapping[str, str], source: Any = None
    ) -> dict[str, Any]:
        """What a value of an argument stands for, by arguments; empty where it names no preset.

        An attack's source comes along, if there is an argument for it.
        """
        kind, beside = kinds[name], name.rpartition(".")[0]
        beside = f"{beside}.source" if beside else "source"
        try:
            if isinstance(value, list):
                parts = [part(kind, item, "") if named(kind, item) else item for item in value]
                parts = checked_nodes(parts)
                if kind == "attack":
                    members = {"init_args": {"attacks": parts}}
                    parts = with_members(members, "", name)["init_args"]["attacks"]
                return {} if parts == value else {name: with_own_defaults(parts, SPELT)}
            if kind != "attack":
                if not named(kind, value):
                    whole = checked_value(value)
                    return {} if whole == value else {name: with_own_defaults(whole, SPELT)}
                return {name: with_own_defaults(part(kind, value, ""), SPELT)}
            node = part(kind, value, "") if named(kind, value) else checked_value(value)
            if not isinstance(node, dict):
                return {}
            node = with_members(node, "", name, source=source)
            if node == value:
                return {}
        except UserError as error:
            self.error(f'Parser key "{name}":\n  {str(error).strip()}', error)
        theirs = node.pop("source", None)
        node.pop("knows", None)
        meant = {name: with_own_defaults(node, SPELT)}
        takes = any(action.dest == beside for action in self._actions)
        return meant | ({beside: with_own_defaults(theirs, SPELT)} if theirs and takes else {})


def _place(obj: Any, name: str) -> tuple[Any, str]:
    """Where a configuration holds an option: the mapping and the key; None where it does not."""
    *outer, key = name.split(".")
    for each in outer:
        obj = obj.get(each) if isinstance(obj, Namespace | dict) else None
    there = isinstance(obj, Namespace | dict) and key in obj
    return (obj if there else None), key


def _value(text: str) -> Any:
    """The value of an option: its text, or the list or mapping that it spells."""
    if not text.startswith(("[", "{")):
        return text
    try:
        return reading.read(text)
    except reading.Twice:
        raise
    except yaml.YAMLError:
        return text  # jsonargparse says what is wrong with it


def _check(option: str, text: str, numeric: Container[str]) -> None:
    """Refuse a value in which a key stands twice, and a number that is not written in decimal."""
    try:
        value = _value(text)
    except reading.Twice as error:
        raise UserError(f"{option} {text}: {error}") from error
    if option[2:] in numeric:
        reading.refuse_other_numbers(value, option)


def _read(text: str) -> str:
    """The text of a number's option, fractions in it read."""
    value = _value(text)
    meant = number(value)
    return text if meant == value else json.dumps(meant)


def _without(namespace: Namespace | None, names: Mapping[str, Any]) -> Namespace | None:
    """What was said before, without parts that are replaced whole."""
    if namespace is None or not names:
        return namespace
    left: Namespace = namespace.clone()
    for name in names:
        left.pop(name, None)
    return left
