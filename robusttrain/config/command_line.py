"""The command line that train.py and evaluate.py share: presets by name on top of jsonargparse.

A preset is a partial configuration. What is in force: defaults, then ``--config`` files, then
presets, then single values; so ``--defense.radius 0.1`` overrides a value of ``--defense
advtransform`` wherever it stands on the line. A preset replaces whole what a file or a default says
of the same part: jsonargparse would carry over arguments of the same name.
"""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jsonargparse
import yaml
from jsonargparse import ArgumentParser, Namespace

from robusttrain.config import parts, presets, reading
from robusttrain.config.classes import defaults_of, recorded, resolve
from robusttrain.config.origins import checked_nodes, said_by_name
from robusttrain.config.parts import ByName
from robusttrain.core.errors import UserError


class _Parser(ByName):
    """jsonargparse's parser, whose help names our own classes, not every module of torch and
    timm.
    """

    def format_help(self, *arguments: Any, **options: Any) -> str:
        def ours(match: re.Match[str]) -> str:
            subclasses = re.sub(r"\s", "", match[1]).split(",")
            named = [
                name
                for name in subclasses
                if re.match(r"robusttrain\.(?!evaluation|training|frozen|Def)", name)
            ] or subclasses[:8]
            indent = "\n" + 24 * " "
            return f"known subclasses:{indent}{(',' + indent).join(named)})"

        return re.sub(
            r"known\s+subclasses:\s+([^()]*)\)", ours, super().format_help(*arguments, **options)
        )


#: Options that several commands have: their types, defaults and help.
SHARED: dict[str, tuple[Any, Any, str]] = {
    "attack": (list[str] | str | None, None, "attack preset or file, repeatable"),
    "suite": (list[str] | str | None, None, "several attacks by one name"),
    "trust": (list[str] | str, [], "package or file that a checkpoint may name, repeatable"),
    "checkpoint": (str | None, None, "file that train.py left; default: newest"),
    "checkpoints": (str, "checkpoints", "folder for checkpoints"),
}


_PICTURES = {"resize": None, "interpolation": "bicubic"}
#: Arguments that parts have had for less time than plans were kept, with the value that says the
#: same as their absence: a point of a study is known by its plan.
LATER: dict[str, dict[str, Any]] = {
    "robusttrain.data.ImageFolder": _PICTURES,
    "robusttrain.data.ImageTable": _PICTURES,
    "robusttrain.data.ImageNet": {"interpolation": "bicubic"},
}


def new_parser(*shared: str, **options: Any) -> ArgumentParser:
    """A parser that raises, with the options that every command has, and those of `SHARED` that are
    named.
    """
    # Abbreviations would slip past the checks of which options go together.
    parser = _Parser(exit_on_error=False, allow_abbrev=False, **options)
    parser.add_argument(
        "--config", action="config", help="YAML file with any of these options; repeatable"
    )
    parser.add_argument("--list", action="store_true", help="list all presets and exit")
    for name in shared:
        kind, default, help = SHARED[name]
        parser.add_argument(f"--{name}", type=kind, default=default, help=help)
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
    nodes, arguments = configurations(gathered(arguments), said)
    _refuse_unknown(nodes, {*kinds, *(action.dest for action in parser._actions)})
    chosen, rest = take(
        arguments,
        lambda option: option[2:] in kinds,
        "give the name of a preset (--list shows all) or a path to a YAML file",
    )
    contents = {option[2:]: parts.content(option[2:], value, option) for option, value in chosen}
    configs: list[dict[str, Any]] = []
    for kind, default in defaults.items():
        if kind not in contents and not any(kind in node for node in nodes):
            configs.append(
                presets.read(kind, default) if isinstance(default, str) else {kind: default}
            )
    for node in nodes:
        left = {key: value for key, value in node.items() if key not in contents}
        for kind in [kind for kind in kinds if parts.named(kind, left.get(kind))]:
            # Whole: nothing of what was said before of the same part stays.
            configs = [{key: item for key, item in each.items() if key != kind} for each in configs]
            configs.append(parts.content(kind, left.pop(kind), f"--config: {kind}"))
        configs.append(left)
    configs += contents.values()
    # Classes and names before what is inside of them, and attacks before their sources.
    inner, rest = take(rest, lambda option: "." in option and not option.endswith(".help"))
    for option, value in chosen:
        of_it = [(key, given) for key, given in inner if key.startswith(f"{option}.")]
        if contents[option[2:]] == {option[2:]: None} and of_it:
            key, given = of_it[0]
            raise UserError(
                f"{key} {given}: {option} {value} leaves nothing that it could belong to; leave one"
                " of the two out"
            )
    for option, value in dict(chosen).items():
        _refuse_second_name(option, value, inner)
    inner.sort(key=lambda each: (each[0].count("."), not each[0].endswith(".attack")))
    try:
        configs = [checked_nodes(config) for config in configs]
        if isinstance(parser, ByName):
            configs = [parser.with_parts(config)[0] for config in configs]
        # jsonargparse takes a configuration as text in place of a path.
        texts = [f"--config={yaml.safe_dump(config, sort_keys=False)}" for config in configs]
        values = [_assignment(option, value, parser) for option, value in _alone(inner)]
        parsed: Namespace = parser.parse_args([*texts, *rest, *values])
    except (jsonargparse.ArgumentError, ValueError, TypeError, OSError) as error:
        raise UserError(short(str(error), parser)) from error
    return parsed


def _refuse_second_name(option: str, value: str, inner: Sequence[tuple[str, str]]) -> None:
    """Raise UserError where ``--data FOLDER`` and ``--data.root OTHER``, or ``--model timm:NAME``
    and ``--model.name OTHER``, name two things: one of them would be left aside in silence.

    Args:
        option: of the part.
        value: its name.
        inner: options of what is inside of parts, and their values.
    """
    said = said_by_name(option[2:], value)
    if said is None:
        return
    argument, named = said
    for key, given in inner:
        if key.replace(".init_args.", ".") != f"{option}.{argument}":
            continue
        if given != named and (argument != "root" or Path(given) != Path(named)):
            raise UserError(
                f"{key} {given}: {option} {value} names another one; leave one of the two out"
            )


def _alone(inner: Sequence[tuple[str, str]]) -> list[tuple[str, str]]:
    """The options, with a preset's ``step_size`` taken away where the relative one is given."""
    given, alone = {option for option, _ in inner}, []
    for option, value in inner:
        part, _, key = option.rpartition(".")
        other = f"{part}.step_size"
        if key == "relative_step_size" and value not in NOTHING and other not in given:
            alone.append((other, "null"))
        alone.append((option, value))
    return alone


def _assignment(option: str, value: str, parser: ArgumentParser) -> str:
    """An option as jsonargparse reads it: for a part that is inside of another, it takes ``null``
    for the text "None" unless the outermost part is given as a mapping.
    """
    keys = option.removeprefix("--").split(".")
    known = {action.dest for action in parser._actions}
    outer = max((n for n in range(1, len(keys)) if ".".join(keys[:n]) in known), default=0)
    if value not in NOTHING or ".".join(keys) in known or not outer:
        return f"{option}={value}"
    node: Any = None
    for key in reversed(keys[outer:]):
        node = {"init_args": {key: node}}
    return f"--{'.'.join(keys[:outer])}={json.dumps(node)}"


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
    taken: list[tuple[str, str]] = []
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
        taken.append((option, value))
    return taken, rest


#: Options that may be repeated, each with one name or a list, and what they name.
REPEATED = {"--trust": "a package or a file", "--robust.attacks": "an attack"}


def gathered(arguments: Sequence[str]) -> list[str]:
    """A command line in which each option of `REPEATED` stands once, with all its names."""
    arguments = list(arguments)
    for option, named in REPEATED.items():
        taken, rest = take(arguments, option.__eq__, f"give {named}")
        if len(taken) > 1:
            names = [each for _, value in taken for each in names_in(value, option)]
            arguments = [*rest, f"{option}={json.dumps(names)}"]
    return arguments


def names_in(value: str, option: str = "--trust") -> list[str]:
    """The names in a value of an option that may be repeated: one, or a list."""
    if not value.startswith("["):
        return [value]
    try:
        several = reading.read(value)
    except yaml.YAMLError as error:
        raise UserError(f"{option} {value}: is no list: give {option} once for each") from error
    return [str(each) for each in several]


def values_of(arguments: Sequence[str], *options: str) -> list[str]:
    """The values of some options of a command line, in their order."""
    return [value for _, value in take(arguments, lambda option: option in options)[0]]


class Said(dict[str, Any]):
    """What a configuration says. ``where`` it does, for errors: of one from Python nobody knows."""

    where = ""

    @classmethod
    def of(cls, node: Mapping[str, Any], where: str = "") -> Said:
        """A copy; of another one, from the same place."""
        copy = cls(node)
        copy.where = where or getattr(node, "where", "")
        return copy


def configurations(
    arguments: Sequence[str], said: Sequence[Mapping[str, Any]] = ()
) -> tuple[list[Said], list[str]]:
    """What is said in configurations: from Python, then in the ``--config`` files of a command
    line; and what is left of the line.
    """
    files, rest = take(arguments, lambda option: option == "--config", "give a YAML file")
    read_files = [
        Said.of(presets.read_yaml(Path(value), "--config"), f"--config {value}")
        for _, value in files
    ]
    for node in read_files:
        for key, value in node.items():
            if fix := _wrong(key, value):
                raise UserError(f"{node.where}: {key} = {value!r}: {fix}")
    return [*map(Said.of, said), *read_files], rest


def _refuse_unknown(nodes: Sequence[Said], options: set[str]) -> None:
    """Raise UserError for a key of a configuration that is none of a command's options."""
    known = {each.partition(".")[0] for each in options}
    for node in nodes:
        for key in node:
            if str(key).partition(".")[0] in known:
                continue
            near = difflib.get_close_matches(str(key), known, n=1, cutoff=0.6)
            hint = f"did you mean {near[0]}?" if near else "--help lists the options"
            where = f"{node.where}: " if node.where else ""
            raise UserError(f"{where}{key}: there is no such option; {hint}")


#: What a configuration may say at the top, by key: where it is wrong, everything else would be
#: misread. Keys that are not here may be null.
PARTS = ("data", "model", "training", "defense")
OPTIONS_INSIDE = ("trainer", "swa", "robust", "pictures", "guard", "extra", "purifier", "h")
NAMES = ("attack", "suite")
NUMBERS = ("seed", "ema", "early_stopping")
TEXTS = ("checkpoints", "logs", "logger", "f_b_training", "compile")


def _wrong(key: str, value: Any) -> str | None:
    """What the value of a key must be, where it is something else."""
    if key in OPTIONS_INSIDE and not isinstance(value, dict):
        return "must be a mapping of options to values"
    if key in PARTS and not isinstance(value, dict | str):
        if key == "defense" and value is None:
            return None
        return "must be a preset's name, or a mapping" + (", or null" * (key == "defense"))
    if key in NAMES and value is not None:
        names = value if isinstance(value, list) else [value]
        if not all(isinstance(name, str) for name in names):
            return "must be a preset's name, or a list of them"
    if key == "attacks" and not isinstance(value, dict):
        return "must be a mapping of names to attacks"
    if key in NUMBERS and value is None:
        return "must be a number"
    if key in TEXTS and value is None:
        return "must be text"
    return None


def names_preset(arguments: Sequence[str], key: str) -> bool:
    """Whether a command line of train.py names a training preset that says ``key``."""
    nodes, _ = configurations(arguments)
    named = values_of(arguments, "--training") or [
        node["training"] for node in nodes if "training" in node
    ]
    return any(
        key in parts.content("training", value, "--training")
        for value in named
        if parts.is_name("training", value)
    )


#: What YAML reads as None.
NOTHING = ("null", "~", "Null", "NULL")
#: jsonargparse names Python's types; what they are on a command line.
WANTED = {
    "int": "a whole number",
    "float": "a number, such as 0.5 or 8/255",
    "bool": "true or false",
}


def short(message: str, parser: ArgumentParser | None = None) -> str:
    """jsonargparse's message of many lines as one: the option's full name, then what is wrong with
    it.
    """
    keys, reason, class_path = [], "", ""
    for line in message.splitlines():
        text = line.strip().lstrip("- ").removeprefix(": ")
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
    if wrong := re.match(r"Expected an? <class '(\w+)'>.*?\. Got value: (.*)", reason):
        reason = f"{wrong[2]}: must be {WANTED.get(wrong[1], wrong[1])}"
    if path := re.match(r"Expected a dot import path string: (.+?)\. Got value: ", reason):
        fix = "no class of that name fits here; one of your own is MODULE.CLASS or FILE.py:CLASS"
        reason = f"{path[1]}: {fix}"
    option = ".".join(keys).replace(".init_args.", ".")
    hint = ""
    if unknown := re.search(
        r"(?:unrecognized arguments?: -*|Option '|Key ')([\w.-]+)", message, re.IGNORECASE
    ):
        options = [*defaults_of(resolve(class_path))] if class_path else []
        options = options or [action.dest for action in (parser._actions if parser else [])]
        near = difflib.get_close_matches(unknown[1], options, n=1, cutoff=0.6)
        hint = (
            f"; did you mean {'' if class_path else '--'}{near[0]}?"
            if near
            else "; an option takes one value, and is given again for each further one"
            if re.search(r"unrecognized arguments?: [^\s-]", message)
            else "; --help lists the options"
        )
    reason = re.sub(r"^(unrecognized arguments?: [^\s=]+)=", r"\1 ", reason)
    return f"--{option}: {reason}{hint}" if option else f"{reason or message}{hint}"


def listed(value: str | list[str] | None) -> list[str]:
    """An option that takes one name or a list of them."""
    return [] if value is None else [value] if isinstance(value, str) else value


def plain(value: Any) -> Any:
    """A parsed configuration as dicts, lists, numbers and text alone, without arguments of `LATER`
    that nobody changed.
    """
    if isinstance(value, Namespace):
        value = value.as_dict()
    if isinstance(value, dict):
        items = {key: plain(item) for key, item in value.items()}
        if isinstance(items.get("class_path"), str):
            items["class_path"] = recorded(items["class_path"])
            arguments, later = items.get("init_args"), LATER.get(items["class_path"], {})
            if isinstance(arguments, dict):
                items["init_args"] = {
                    key: value
                    for key, value in arguments.items()
                    if key not in later or value != later[key]
                }
        return items
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    return value if isinstance(value, bool | int | float | str) or value is None else str(value)
