"""The parts of a small frozen dataclass: its fields by the kind of their values."""

from __future__ import annotations

from dataclasses import fields, is_dataclass
from typing import Any, TypeVar

Kind = TypeVar("Kind")


def class_name(class_path: str) -> str:
    """The last part of "package.module.Class", or of "folder/file.py:Class"."""
    return class_path.rpartition(":")[2].rpartition(".")[2]


def part(whole: object, kind: type[Kind]) -> tuple[str, Kind] | tuple[None, None]:
    """Name and value of the first field that holds a ``kind``; None and None where there is none.

    The kind of its value identifies a field, so nothing depends on names.
    """
    for each in fields(whole) if is_dataclass(whole) else ():
        value: Any = vars(whole)[each.name]
        if isinstance(value, kind):
            return each.name, value
    return None, None
