"""The parts of a small frozen dataclass by the kind of their values; and those of a configuration
by their names.
"""

from __future__ import annotations

from dataclasses import fields, is_dataclass
from typing import Any, TypeVar

Kind = TypeVar("Kind")


def class_name(class_path: str) -> str:
    """The last part of "package.module.Class", or of "folder/file.py:Class"."""
    return class_path.rpartition(":")[2].rpartition(".")[2]


def flat(value: Any, name: str = "") -> dict[str, Any]:
    """A nested configuration as one level of dotted names; class paths without their packages."""
    if isinstance(value, dict):
        values: dict[str, Any] = {}
        for key, item in value.items():
            inner = (
                name
                if key == "init_args"
                else f"{name}.{key}"
                if name and key != "class_path"
                else name or key
            )
            values.update(flat(class_name(item) if key == "class_path" else item, inner))
        return values
    if isinstance(value, list) and any(isinstance(item, dict) for item in value):
        return {
            key: part
            for i, item in enumerate(value)
            for key, part in flat(item, f"{name}.{i}").items()
        }
    return {name: value if isinstance(value, int | float | str | bool) else str(value)}


def part(whole: object, kind: type[Kind]) -> tuple[str, Kind] | tuple[None, None]:
    """Name and value of the first field that holds a ``kind``; None and None where there is none.

    The kind of its value identifies a field, so nothing depends on names.
    """
    for each in fields(whole) if is_dataclass(whole) else ():
        value: Any = vars(whole)[each.name]
        if isinstance(value, kind):
            return each.name, value
    return None, None
