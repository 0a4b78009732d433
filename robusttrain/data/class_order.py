"""The numbers of classes by their sorted names, or by a file that lists them."""

from __future__ import annotations

import json
import re
import unicodedata
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from robusttrain.core.errors import OptionError, UserError
from robusttrain.data.notes import shown

_SHOWN = 12
#: What to do about classes that a checkpoint has by the same names, at other numbers.
RENAME = (
    "rename the classes as in the checkpoint, or give --data.classes FILE with their names here in"
    " the checkpoint's order"
)


def class_name(folder: str) -> str:
    """The name of the class of a folder, the same on all systems.

    Accents are composed, which some systems do not do, and bytes that are no text are escaped.
    """
    return unicodedata.normalize("NFC", shown(folder))


def numbered(names: Sequence[str]) -> list[str]:
    """Class names in the order of their numbers: as numbers if all are numbers, else as text."""
    if names and all(name.isdecimal() for name in names):
        return sorted(names, key=lambda name: (int(name), name))
    return sorted(names)


def numbering(names: Sequence[str], where: str) -> str:
    """The numbers of the classes in one line, and their origin.

    Args:
        names: in the order of their numbers.
        where: the origin of the numbers, in words.
    """
    pairs = [f"{number} {name}" for number, name in enumerate(names)]
    if len(pairs) > _SHOWN:
        pairs = [*pairs[: _SHOWN - 2], "...", pairs[-1]]
    return f"{len(names)} classes, numbered {where}: {', '.join(pairs)}"


def by_name(names: Sequence[str]) -> str:
    """How `numbered` put these names in order, and how another program would, in words."""
    if list(names) != sorted(names):
        return (
            "as numbers by their folders (torchvision sorts 10 before 2, as text; --data.classes"
            " FILE gives another order)"
        )
    if list(names) != sorted(names, key=_natural):
        return (
            "by the sorted names of their folders, as text (10 before 2 inside a name;"
            " --data.classes FILE gives another order)"
        )
    return "by the sorted names of their folders"


def read_order(path: str) -> list[str]:
    """Class names in the order of their numbers, from a file.

    Args:
        path: of a text file with one folder name a line, or of JSON or YAML (by its ending) with a
            list of names, or a mapping from names to numbers.

    Raises:
        OptionError: there is no such file, or it has other content.
    """
    try:
        text = Path(path).expanduser().read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "it is no text in UTF-8"
        raise OptionError("data.classes", path, f"cannot be read ({reason})") from error
    names = [class_name(name) for name in _names(text, path)]
    if not names:
        raise OptionError("data.classes", path, "names no class: give one folder name a line")
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise OptionError("data.classes", path, f"names {twice[0]!r} twice: name each class once")
    return names


def _names(text: str, path: str) -> list[str]:
    suffix = Path(path).suffix.lower()
    if suffix not in (".json", ".yaml", ".yml"):
        return [line.strip() for line in text.splitlines() if line.strip()]
    try:
        # YAML values stay as they are written: a folder "no" is no truth value, and "01" no number.
        content: Any = json.loads(text) if suffix == ".json" else yaml.load(text, yaml.BaseLoader)
        if isinstance(content, dict):
            places = {int(place): str(name) for name, place in content.items()}
            if sorted(places) != list(range(len(content))):
                raise ValueError("numbers")
            return [places[place] for place in range(len(content))]
        if not isinstance(content, list) or not all(
            isinstance(name, str) or type(name) is int for name in content
        ):
            raise ValueError("no list")
        return [str(name) for name in content]
    except (ValueError, TypeError, RecursionError, yaml.YAMLError) as error:
        fix = "must hold a list of folder names, or a mapping from each to its number from 0"
        raise OptionError("data.classes", path, fix) from error


def fitting(names: Sequence[str], order: Sequence[str], source: str, what: str) -> None:
    """Raise UserError unless every name, of a folder or a class as ``what`` says, is in the order
    that the source gives.
    """
    if unknown := [name for name in names if name not in set(order)]:
        raise UserError(
            f"the {what} {unknown[0]!r} is no class of {source}, which has"
            f" {', '.join(map(repr, order[:5]))}{' ...' if len(order) > 5 else ''}: add it there,"
            f" or remove the {what}"
        )


def _natural(name: str) -> list[tuple[int, str]]:
    """A key that sorts numbers inside names as numbers."""
    parts = re.split(r"(\d+)", name)
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in parts]
