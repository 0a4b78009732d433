"""Attacks by name: from presets and ``--attack`` options to scenarios that are ready to run.

A preset holds the class and arguments of an attack, and beside them its ``source`` and, if the
source does not say it well enough, what the attacker ``knows``.
"""

from __future__ import annotations

import copy
import json
import logging
import re
from collections.abc import Container, Iterable, Mapping, Sequence
from dataclasses import replace
from functools import lru_cache
from typing import Any

import jsonargparse
import yaml

from robusttrain.attacks import Attack, Source
from robusttrain.attacks.parts.updates import MOMENTUM, STEEPEST
from robusttrain.config import presets, reading
from robusttrain.config.build import build
from robusttrain.config.checkpoints import READER
from robusttrain.config.classes import IN_FILE, defaults_of, parts_of, resolve, with_module
from robusttrain.config.command_line import listed, plain, short, take, values_of
from robusttrain.config.numbers import number
from robusttrain.config.origins import checked_nodes
from robusttrain.config.parts import (
    TARGET,
    ByName,
    content,
    named,
    names_class,
    with_members,
    with_own_defaults,
)
from robusttrain.config.suites import OPTIONS, suite, suite_settings
from robusttrain.core.errors import OptionError, UserError, at_least, under
from robusttrain.core.parts import class_name
from robusttrain.evaluation import Scenario

_log = logging.getLogger(__name__)
CLASS_PATHS = re.compile(r'"class_path": "([^"]*)"')


def spelt_out(arguments: Sequence[str], nodes: Sequence[Mapping[str, Any]]) -> list[str]:
    """A command line with the attacks and suites that its configuration files name, where the line
    itself names none.

    Args:
        arguments: the command line.
        nodes: contents of the files; the last one that names any is meant.
    """
    if values_of(arguments, "--attack", "--suite"):
        return [*arguments]
    said = {key: node[key] for node in nodes for key in ("attack", "suite") if key in node}
    named = [f"--{key}={name}" for key in ("attack", "suite") for name in listed(said.get(key))]
    return [*named, *arguments]


def split_attacks(
    arguments: Sequence[str],
    nodes: Sequence[Mapping[str, Any]] = (),
    options: Sequence[str] = OPTIONS,
) -> tuple[list[str], list[tuple[str, str]], list[str]]:
    """Take ``--attack NAME``, ``--suite NAME`` and ``--attack.KEY VALUE`` out of a command line.

    Args:
        arguments: the command line.
        nodes: contents of its configuration files: what they set, their suites do not.
        options: what a suite may set of the command's own options.

    Returns:
        Names of attacks in their order, overrides as (key, value), and what is left of the line.
    """
    names: list[str] = []
    overrides: list[tuple[str, str]] = []
    set_by: dict[str, tuple[str, Any]] = {}  # by option, which suite set it, and to what
    given = {argument.partition("=")[0] for argument in arguments}
    taken, rest = take(
        arguments,
        lambda option: option in ("--attack", "--suite") or option.startswith("--attack."),
    )
    for option, value in taken:
        if option == "--attack":
            presets.refuse_key("attack", value, option)
            names.append(value)
        elif option == "--suite":
            names.extend(suite(value))
            theirs = {
                key: setting
                for key, setting in suite_settings(value, options).items()
                if not any("suite" in node and key in node for node in nodes)
            }
            for key, setting in theirs.items():
                said = f"--{key}" in given or any(key in node for node in nodes)
                other, before = set_by.setdefault(key, (value, setting))
                if before != setting and not said:
                    raise UserError(
                        f"--suite {value}: sets {key} {_as_typed(setting)}, and {other}"
                        f" {_as_typed(before)}: give --{key}"
                    )
            # Before the rest of the line, which overrides it.
            rest = [*(f"--{key}={setting}" for key, setting in theirs.items()), *rest]
        else:
            overrides.append((option.removeprefix("--attack."), value))
    return list(dict.fromkeys(names)), overrides, rest


def _as_typed(setting: Any) -> str:
    return str(setting).lower() if isinstance(setting, bool) else str(setting)


def radii(
    arguments: Sequence[str], nodes: Sequence[Mapping[str, Any]], epsilon: float | None
) -> tuple[float | None, float | None]:
    """The radius for `attack_nodes` as somebody gave it, and as a suite sets it: what is said of
    one attack counts more than the second.

    Args:
        arguments: the command line.
        nodes: contents of its configuration files.
        epsilon: what the option came to.
    """
    given = bool(values_of(arguments, "--epsilon")) or any("epsilon" in node for node in nodes)
    return (epsilon, None) if given else (None, epsilon)


#: Arguments of which one alone may be given: who sets one takes the preset's other away.
EITHER = {"step_size": "relative_step_size", "relative_step_size": "step_size"}
_PLAIN_KEYS = ("class_path", "init_args", "source", "knows")


def _override(node: dict[str, Any], path: list[str], value: Any) -> None:
    """Set a value deep inside a preset; ``init_args`` need not be named, and items of lists go by
    number.
    """
    key, *deeper = path
    owner = node.get("class_path")
    if "class_path" in node and key not in _PLAIN_KEYS:
        node = node.setdefault("init_args", {})
    if not deeper and names_class(value) and _is_part(owner, key, node.get(key)):
        deeper = ["class_path"]
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
        # A part that was named by its class alone keeps it.
        node[key] = {"class_path": items} if names_class(items) else {}
    _override(node[key], deeper, value)


def _is_part(owner: Any, key: str, there: Any) -> bool:
    """Whether an argument holds an object, by what is there or else by its annotation."""
    if isinstance(there, dict):
        return True
    return there is None and isinstance(owner, str) and key in parts_of(owner)


def stem(name: str) -> str:
    """What an attack is called in reports: a preset's name, or a file's."""
    if match := IN_FILE.fullmatch(name):
        return match["name"]
    return name.rpartition("/")[2].removesuffix(".yaml").removesuffix(".yml")


def by_name(names: Iterable[str], option: str = "--attack") -> dict[str, str]:
    """Presets and files by what they are called in reports (`stem`).

    Raises:
        UserError: two of them are called alike.
    """
    found: dict[str, str] = {}
    for name in names:
        presets.refuse_several("attack", name, option)
        if (other := found.setdefault(stem(name), name)) != name:
            raise UserError(
                f"{option} {name}: {other} is called {stem(name)} as well, and one name stands for"
                " one attack: rename the file"
            )
    return found


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
    names: Sequence[str] | Mapping[str, Any],
    overrides: Sequence[tuple[str, str]] = (),
    epsilon: float | None = None,
    option: str = "--attack",
    of_suite: float | None = None,
) -> dict[str, dict[str, Any]]:
    """The configurations of attacks by name, from presets, overrides applied and not yet checked.

    Args:
        names: presets' names, or paths to YAML files (known by the file's name then); or by names
            of their own, presets' names, mappings that are ``like`` one, or whole nodes.
        overrides: (key, value): "steps" for every attack that has steps, "bpda-eot.steps" for one.
        epsilon: radius of the threat for every attack; None leaves each preset's own.
        option: what the user typed to name them, for error messages.
        of_suite: radius of the threat for every attack whose own no override sets.

    Raises:
        UserError: unknown preset, or a value that is no YAML.
    """
    nodes = names if isinstance(names, Mapping) else by_name(names, option)
    read = {name: _content(name, said, option) for name, said in nodes.items()}
    for key, text in overrides:
        owner, _, inner = key.partition(".")
        if inner and owner not in nodes and presets.named("attack", owner):
            raise UserError(
                f"{option}.{key} {text}: {owner} is not among the attacks ({', '.join(nodes)}): add"
                f" {option} {owner}, or name one of them"
            )
    spared = _spared(read, [key for key, _ in overrides], option)
    for name, node in read.items():
        preset = copy.deepcopy(node)
        if of_suite is not None:
            _override(node, ["threat", "epsilon"], of_suite)
        # Classes first: an argument may be meant for the part that replaces another. What is said
        # of one attack counts more than what is said of all.
        for key, text in sorted(
            overrides, key=lambda each: (_depth(each[0], nodes), each[0].partition(".")[0] in nodes)
        ):
            owner, _, inner = key.partition(".")
            if owner in nodes and inner:
                if owner != name:
                    continue
                key = inner
            elif name in spared.get(key, ()):
                continue
            try:
                value = reading.read(text)
            except reading.Twice as error:
                raise UserError(f"{option}.{key} {text}: {error}") from error
            except yaml.YAMLError as error:
                raise UserError(f"{option}.{key} {text}: cannot be read as YAML") from error
            _override(node, key.split("."), value)
            other = EITHER.get(key)
            if other in (node.get("init_args") or {}) and not any(
                given in (other, f"{name}.{other}") for given, _ in overrides
            ):
                _override(node, [str(other)], None)
            node = with_members(node, name, option, (name,))  # those that the override named
        meant = _of(name, nodes, overrides)
        changes = [key.split(".") for key, _ in meant]
        if _replaced("threat", changes):
            if not _replaced("rule", changes):
                _with_rules_of(node)
            if not any(each[-1] in EITHER for each in changes):
                _with_shares_of(node, preset)
        if epsilon is not None:
            radius = "--epsilon" if option == "--attack" else "--robust.epsilon"
            at_least(radius, epsilon, 0)
            for parts, (key, text) in zip(changes, meant, strict=True):
                own = parts[1:] if parts[0] == name else parts
                if any(not _is(each, epsilon) for each in _radii(own, reading.read(text))):
                    raise UserError(
                        f"{option}.{key} {text}: another radius than {radius} {epsilon:g}, which is"
                        " that of every attack: leave one of the two out"
                    )
            _override(node, ["threat", "epsilon"], epsilon)
        read[name] = _with_modules(plain(number(node)))
        reading.refuse_other_numbers(read[name].get("init_args"), f"{option}.{name}")
    return read


def out_of_threat(
    nodes: Mapping[str, dict[str, Any]],
    asked: Container[str],
    overrides: Sequence[tuple[str, str]],
) -> dict[str, str]:
    """Attacks of suites, by name, that cannot be moved into the threat that a command line gives
    to all, and why not; all others are checked.

    Args:
        nodes: of the attacks (`attack_nodes`).
        asked: those that were named by themselves, which must be able to.
        overrides: as for `attack_nodes`.

    Raises:
        UserError: something is wrong with an attack, or none is left.
    """
    found: dict[str, str] = {}
    moved = _replaced("threat", [key.split(".") for key, _ in overrides])
    for name, node in nodes.items():
        try:
            checked(node, name)  # says what is wrong with it
        except OptionError as error:
            left = moved and name not in asked and error.option.endswith(".threat")
            if not left or len(found) + 1 == len(nodes):
                raise
            found[name] = f"the threat {error.fix}"  # "must be Linf: ..."
    return found


def _is(value: Any, radius: float) -> bool:
    """Whether they are one number."""
    try:
        return float(number(value)) == radius
    except (TypeError, ValueError):
        return False


def _radii(key: list[str], value: Any) -> list[Any]:
    """Radii that an override gives an attack: as epsilon, or within a whole threat."""
    for name in reversed(key):
        value = {name: value}
    threat = value.get("threat")
    nodes = [threat, threat.get("init_args")] if isinstance(threat, dict) else []
    return [node["epsilon"] for node in nodes if isinstance(node, dict) and "epsilon" in node]


def _of(
    name: str, names: Container[str], overrides: Sequence[tuple[str, str]]
) -> list[tuple[str, str]]:
    """The overrides that are meant for one of several attacks, or for all of them."""
    owners = [key.partition(".")[0] for key, _ in overrides]
    return [
        each
        for owner, each in zip(owners, overrides, strict=True)
        if owner == name or owner not in names
    ]


def _replaced(part: str, changes: Iterable[list[str]]) -> bool:
    """Whether overrides, each a list of its key's parts, put another object in an argument's
    place.
    """
    return any(each[-1] == part or each[-2:] == [part, "class_path"] for each in changes)


def _depth(key: str, names: Container[str]) -> int:
    """Where an override comes in the order: a part before what stands inside it."""
    owner, _, inner = key.partition(".")
    key = inner if inner and owner in names else key
    whole = key.removesuffix("class_path")
    return 2 * len(whole.strip(".").split(".")) - (whole != key) if whole else 0


def _with_rules_of(node: Any) -> None:
    """Exchange rules of steepest ascent or momentum in a node for that of the threat's norm, in
    place.
    """
    for item in node.values() if isinstance(node, dict) else node if isinstance(node, list) else ():
        _with_rules_of(item)
    inside = node.get("init_args") if isinstance(node, dict) else None
    if not isinstance(inside, dict):
        return
    threat = inside.get("threat")
    threat = {"class_path": threat} if names_class(threat) else threat
    if not isinstance(threat, dict):
        return
    if not _takes(str(node.get("class_path")), "rule"):
        return
    rule, norm = inside.get("rule"), _norm(threat)
    steepest = {type(each).__name__ for each in STEEPEST.values()}
    momentum = {each.__name__ for each in MOMENTUM.values()}
    named = class_name(str(rule.get("class_path"))) if isinstance(rule, dict) else "Sign"
    if norm in STEEPEST and named in steepest:
        name = type(STEEPEST[norm]).__name__
        inside["rule"] = {"class_path": f"robusttrain.attacks.{name}"}
    elif norm in MOMENTUM and named in momentum and isinstance(rule, dict):  # it keeps its decay
        inside["rule"] = {**rule, "class_path": f"robusttrain.attacks.{MOMENTUM[norm].__name__}"}


def _with_shares_of(node: dict[str, Any], preset: Mapping[str, Any]) -> None:
    """Where a node's threat has another norm than its preset's, a step keeps its share of the
    radius, as in `ProjectedGradient.within`; in place.
    """
    inside = node.get("init_args") or {}
    threat = (with_own_defaults(preset).get("init_args") or {}).get("threat") or {}
    radius = (threat.get("init_args") or {}).get("epsilon")
    size = inside.get("step_size")
    if size is None or not radius or not _takes(node["class_path"], "relative_step_size"):
        return
    if _norm(inside["threat"]) != _norm(threat):
        inside["step_size"], inside["relative_step_size"] = None, number(size) / number(radius)


def _with_modules(node: Any) -> Any:
    """A node whose classes of ours have their modules, as a plan has to have them: whoever repeats
    it trusts packages.
    """
    if isinstance(node, list):
        return [_with_modules(item) for item in node]
    if not isinstance(node, dict):
        return node
    whole = {key: _with_modules(item) for key, item in node.items()}
    if isinstance(whole.get("class_path"), str):
        whole["class_path"] = with_module(whole["class_path"])
    return whole


def _norm(threat: Any) -> str | None:
    """Of a threat's node."""
    path = str(threat.get("class_path") if isinstance(threat, dict) else threat)
    return getattr(resolve(path), "norm", None)


def _content(name: str, said: Any, option: str) -> dict[str, Any]:
    """The node of an attack, as it was said."""
    where = option if isinstance(said, str) and stem(said) == name else f"{option}.{name}"
    node = content("attack", said, where) if named("attack", said) else said
    if not isinstance(node, dict) or not isinstance(node.get("class_path"), str):
        if isinstance(said, str) and said.endswith(".py"):
            raise UserError(f"{option} {said}: name the attack's class in it: {option} {said}:NAME")
        fix = "must be a preset's name, like one, or have a class_path"
        inside = [*node.values()] if isinstance(node, dict) else []
        if (
            len(inside) == 1
            and isinstance(inside[0], dict)
            and {"class_path", "like"} & {*inside[0]}
        ):
            (key,) = node
            fix = f"{fix}; what is under its key {key!r} has one: leave the key out"
        raise OptionError(f"{option}.{name}", said, fix)
    return with_members(node, name, option, (name,))


def _spared(
    nodes: Mapping[str, dict[str, Any]], keys: Sequence[str], option: str
) -> dict[str, list[str]]:
    """By key of an override that is meant for all attacks: those that have no such argument, and
    stay as they are. Where none has it, none is spared: the first one says what is wrong.
    """
    spared = {}
    for key in dict.fromkeys(keys):
        first = key.partition(".")[0]
        if first in nodes or first in _PLAIN_KEYS or "class_path" in keys:
            continue
        lacking = [name for name, node in nodes.items() if not _takes(node["class_path"], first)]
        if lacking and len(lacking) < len(nodes):
            spared[key] = lacking
            _log.info("%s.%s: not of %s, which stay as they are", option, key, ", ".join(lacking))
    return spared


def _takes(class_path: str, argument: str) -> bool:
    try:
        return argument in defaults_of(resolve(class_path))
    except UserError:
        return True  # what is wrong with the class is said where it is built


def scenario(node: dict[str, Any], name: str, option: str = "--attack") -> Scenario:
    """One attack from the content of its preset, with the models that it names; arguments as for
    `checked`.
    """
    closed = checked(node, name, option)
    with under(f"{option}.{name}"):
        return replace(closed, source=closed.source.opened(READER))


def _parsed(nodes: str) -> dict[str, Any]:
    """The attack and the source of a JSON text, with all their defaults."""
    parser = ByName(exit_on_error=False)
    parser.add_subclass_arguments(Attack, "attack", required=True)
    parser.add_subclass_arguments(Source, "source", required=True)
    parsed: dict[str, Any] = parser.parse_object(json.loads(nodes)).as_dict()
    return parsed


#: Suites and studies ask for the same attacks again and again. Classes of this package stay what
#: they are while a process runs; those of a user's files may change with the working folder.
_parsed_once = lru_cache(maxsize=512)(_parsed)


def _whole(attack: dict[str, Any], source: Any) -> dict[str, Any]:
    nodes = json.dumps({"attack": attack, "source": source}, default=str)
    ours = all(path.startswith("robusttrain.") for path in CLASS_PATHS.findall(nodes))
    return copy.deepcopy(_parsed_once(nodes)) if ours else _parsed(nodes)


def checked(node: dict[str, Any], name: str, option: str = "--attack") -> Scenario:
    """One attack from the content of its preset; no file that its source names is opened.

    Args:
        node: the preset.
        name: of the attack.
        option: what the user typed to name it.

    Raises:
        UserError: in one line, the option, its value and the fix.
    """
    try:
        node = with_own_defaults(checked_nodes(node))
    except UserError as error:
        raise UserError(f"{option} {name}: {error}") from error
    for key, value in node.items():
        if key not in _PLAIN_KEYS:
            fix = "is no part of an attack's node; arguments of the attack stand under init_args"
            raise OptionError(f"{option}.{name}.{key}", value, fix)
    knows = node.pop("knows", "")
    source = node.pop("source", TARGET)
    try:
        parsed = _whole(node, source)
    except (jsonargparse.ArgumentError, ValueError, TypeError) as error:
        reason = short(str(error)).removeprefix("--attack").removeprefix("--").lstrip(".: ")
        raise UserError(
            f"{option}.{name}.{reason}" if ": " in reason else f"{option} {name}: {reason}"
        ) from error
    with under(f"{option}.{name}"):
        return Scenario(
            build(parsed["attack"], kind=Attack),
            build(parsed["source"], "source", kind=Source),
            knows,
        )
