"""The command line that train.py and evaluate.py share: presets by name on top of jsonargparse.

A preset is a partial configuration. What is in force: defaults, then ``--config`` files, then
presets, then single values; so ``--defense.radius 0.1`` overrides a value of ``--defense
advtransform`` wherever it stands on the line. A preset replaces whole what a file or a default says
of the same part: jsonargparse would carry over arguments of the same name.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jsonargparse
import yaml
from jsonargparse import ArgumentParser, Namespace

from robusttrain.config import parts, presets
from robusttrain.config.classes import defaults_of, recorded, resolve
from robusttrain.config.origins import checked_node, checked_nodes, from_elsewhere
from robusttrain.config.parts import ByName
from robusttrain.core.errors import UserError


class _Parser(ByName):
    """jsonargparse's parser, whose help names our own classes, not every module of torch and
    timm.
    """

    def format_help(self, *arguments: Any, **options: Any) -> str:
        def ours(match: re.Match[str]) -> str:
            known = re.sub(r"\s", "", match[1]).split(",")
            named = [
                name
                for name in known
                if re.match(r"robusttrain\.(?!evaluation|training|frozen|Def)", name)
            ] or known[:8]
            indent = "\n" + 24 * " "
            return f"known subclasses:{indent}{(',' + indent).join(named)})"

        return re.sub(
            r"known\s+subclasses:\s+([^()]*)\)", ours, super().format_help(*arguments, **options)
        )


def new_parser(**options: Any) -> ArgumentParser:
    """A parser that raises, with the options that every command has."""
    # Abbreviations would slip past the checks of which options go together.
    parser = _Parser(exit_on_error=False, allow_abbrev=False, **options)
    parser.add_argument(
        "--config", action="config", help="YAML file with any of these options; repeatable"
    )
    parser.add_argument("--list", action="store_true", help="list all presets and exit")
    return parser


def read(
    parser: ArgumentParser,
    arguments: Sequence[str],
    kinds: Sequence[str],
    defaults: Mapping[str, str | dict[str, Any]],
    said: Sequence[Mapping[str, Any]] = (),
) -> Namespace:
    """Parse a command line, presets expanded wherever a part is named.

    Args:
        parser: of the command, a `parts.ByName`.
        arguments: the command line.
        kinds: options whose value may be a preset's name.
        defaults: by kind, the name of a preset or a configuration node, for kinds that nobody else
            chooses.
        said: configurations as ``--config`` files hold them, before those.

    Raises:
        UserError: in one line, the option, its value and the fix.
    """
    # An option may not be both a value and a group, so the argument is called otherwise
    arguments = [
        re.sub(r"^(--[\w.]*weights)\.which(?==|$)", r"\1_which", each) for each in arguments
    ]
    nodes = configurations(arguments, said)
    presets_chosen, rest = expand(config_files(arguments)[1], kinds)
    chosen = {
        option[2:].partition("=")[0]
        for option in rest
        if option.startswith("--") and "." not in option
    }
    chosen |= presets_chosen.keys()
    configs: list[dict[str, Any]] = []
    for kind, default in defaults.items():
        if kind not in chosen and not any(kind in node for node in nodes):
            configs.append(
                presets.read(kind, default) if isinstance(default, str) else {kind: default}
            )
    for node in nodes:
        left = {key: value for key, value in node.items() if key not in presets_chosen}
        for kind in [kind for kind in kinds if parts.named(kind, left.get(kind))]:
            # Whole: nothing of what was said before of the same part stays.
            configs = [{key: item for key, item in each.items() if key != kind} for each in configs]
            configs.append(parts.content(kind, left.pop(kind), f"--config: {kind}"))
        configs.append(left)
    configs += presets_chosen.values()
    # Classes and names before what is inside of them, and attacks before their sources.
    inner, rest = take(rest, lambda option: "." in option and not option.endswith(".help"))
    inner.sort(key=lambda each: (each[0].count("."), not each[0].endswith(".attack")))
    try:
        configs = [checked_nodes(config) for config in configs]
        if isinstance(parser, ByName):
            configs = [parser.with_parts(config)[0] for config in configs]
        # jsonargparse takes a configuration as text in place of a path.
        texts = [f"--config={yaml.safe_dump(config, sort_keys=False)}" for config in configs]
        values = [f"{option}={value}" for option, value in inner]
        found: Namespace = parser.parse_args([*texts, *rest, *values])
    except (jsonargparse.ArgumentError, ValueError, TypeError, OSError) as error:
        raise UserError(short(str(error), parser)) from error
    return found


def take(
    arguments: Sequence[str], wanted: Callable[[str], bool], missing: str = "a value is missing"
) -> tuple[list[tuple[str, str]], list[str]]:
    """Take some options out of a command line: (option, value) in their order, and what is left of
    the line.

    Args:
        arguments: the command line; values follow their option, or stand behind its "=".
        wanted: whether an option, dashes and all, is to be taken.
        missing: what to tell a user who forgot the value.
    """
    found: list[tuple[str, str]] = []
    rest: list[str] = []
    waiting = list(arguments)
    while waiting:
        argument = waiting.pop(0)
        option, has_value, value = argument.partition("=")
        if not option.startswith("--") or not wanted(option):
            rest.append(argument)
            continue
        if not has_value:
            if not waiting:
                raise UserError(f"{option}: {missing}")
            value = waiting.pop(0)
        found.append((option, value))
    return found, rest


def config_files(arguments: Sequence[str]) -> tuple[list[Path], list[str]]:
    """Take the ``--config`` files out of a command line."""
    found, rest = take(arguments, lambda option: option == "--config", "give a YAML file")
    return [Path(value) for _, value in found], rest


def configurations(
    arguments: Sequence[str], said: Sequence[Mapping[str, Any]] = ()
) -> list[dict[str, Any]]:
    """What is said in configurations: from Python, then in the ``--config`` files of a command
    line.
    """
    files, _ = config_files(arguments)
    return [*map(dict, said), *(presets.read_yaml(path, "--config") for path in files)]


def expand(
    arguments: Sequence[str], kinds: Sequence[str]
) -> tuple[dict[str, dict[str, Any]], list[str]]:
    """Take the presets, and parts from elsewhere, out of a command line: their contents by kind,
    and what is left of the line.

    A value with a dot that is no YAML file is a class path and stays, before what overrides its
    arguments.
    """
    found: dict[str, dict[str, Any]] = {}
    classes = []
    missing = "give the name of a preset (--list shows all) or a path to a YAML file"
    chosen, rest = take(arguments, lambda option: option[2:] in kinds, missing)
    for option, value in chosen:
        kind = option[2:]
        is_class = re.fullmatch(r"\w+(\.\w+)+", value) and not value.endswith((".yaml", ".yml"))
        if not is_class or from_elsewhere(kind, value):
            found[kind] = parts.content(kind, value, option)
            continue
        try:
            node = checked_node({"class_path": value})
        except UserError as error:
            raise UserError(f"{option}: {error}") from error
        classes.append(f"{option}={node['class_path']}")
        unfilled = node.get("init_args") or {}
        classes += [f"{option}.{name}={number}" for name, number in unfilled.items()]
    return found, [*classes, *rest]


def short(message: str, parser: ArgumentParser | None = None) -> str:
    """jsonargparse's message of many lines as one: the option's full name, then what is wrong with
    it.
    """
    keys, reason, class_path = [], "", ""
    for line in message.splitlines():
        text = line.strip().lstrip("- ")
        if key := re.match(r'(?:Parser key|Key) "?([^":]+)"?:(.*)', text):
            keys.append(key[1])
            text = key[2].strip()
        if given := re.match(r"Problem with given class_path '([\w.]+)'", text):
            class_path = given[1]
        skip = (
            "Does not validate",
            "Subtypes:",
            "Errors:",
            "Problem with given class_path",
            "Given value",
        )
        if text and not text.startswith(skip):
            reason = text
            break
    if reason.startswith("Expected a ") and (choices := re.findall(r"Literal\[(.*?)\]", message)):
        named = ", ".join(
            dict.fromkeys(choice.strip("' ") for choice in ", ".join(choices).split(","))
        )
        value = re.search(r"Got value: (.*)", message)
        reason = f"{value[1] + ': ' if value else ''}must be one of {named}"
    if reason.startswith("Expected a ") and "Got value" not in reason:
        given_value = re.search(r"Given value: (.*)", message)
        reason += f". Got value: {given_value[1]}" if given_value else ""
    option = ".".join(keys).replace(".init_args.", ".")
    hint = ""
    if unknown := re.search(
        r"(?:unrecognized arguments?: -*|Option '|Key ')([\w.-]+)", message, re.IGNORECASE
    ):
        known = [*defaults_of(resolve(class_path))] if class_path else []
        known = known or [action.dest for action in (parser._actions if parser else [])]
        near = difflib.get_close_matches(unknown[1], known, n=1, cutoff=0.6)
        hint = (
            f"; did you mean {'' if class_path else '--'}{near[0]}?"
            if near
            else "; --help lists the options"
        )
    reason = re.sub(r"^(unrecognized arguments?: [^\s=]+)=", r"\1 ", reason)
    return f"--{option}: {reason}{hint}" if option else f"{reason or message}{hint}"


def listed(value: str | list[str] | None) -> list[str]:
    """An option that takes one name or a list of them."""
    return [] if value is None else [value] if isinstance(value, str) else value


def plain(value: Any) -> Any:
    """A parsed configuration as dicts, lists, numbers and text alone."""
    if isinstance(value, Namespace):
        value = value.as_dict()
    if isinstance(value, dict):
        found = {key: plain(item) for key, item in value.items()}
        if isinstance(found.get("class_path"), str):
            found["class_path"] = recorded(found["class_path"])
        return found
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    return value if isinstance(value, bool | int | float | str) or value is None else str(value)
