"""Numbers as people write them: ``8/255`` wherever a number is expected."""

from __future__ import annotations

import re
import types
from collections.abc import Iterable
from typing import Annotated, Any, Union, get_args, get_origin

from robusttrain.core.errors import OptionError

_FRACTION = re.compile(r"\s*([+-]?\d+(?:\.\d*)?)\s*/\s*(\d+(?:\.\d*)?)\s*")


def number(value: Any) -> Any:
    """The number that a fraction spells, whole where it is one; whatever else is returned as it
    is, fractions inside of lists and mappings read.
    """
    if isinstance(value, list):
        return [number(item) for item in value]
    if isinstance(value, dict):
        return {key: number(item) for key, item in value.items()}
    match = _FRACTION.fullmatch(value) if isinstance(value, str) else None
    if match is None or float(match[2]) == 0:
        return value
    result = float(match[1]) / float(match[2])
    return int(result) if result.is_integer() else result


def a_number(value: Any, option: str) -> float:
    """The number of an option that takes one, or text such as ``8/255``.

    Raises:
        OptionError: it is none.
    """
    try:
        return float(number(value))
    except (TypeError, ValueError) as error:
        raise OptionError(option, value, "must be a number, such as 8/255") from error


def parts_of(text: str) -> list[str]:
    """The numbers of a list as they are typed, such as ``0,2/255,4/255``."""
    return [part.strip() for part in text.strip("[] ").split(",")]


def several(value: Any, option: str) -> list[float]:
    """The numbers of an option that takes several: a list, or text such as ``0,2/255,4/255``.

    Raises:
        OptionError: a part that is no number.
    """
    parts = parts_of(value) if isinstance(value, str) else value
    try:
        return [float(number(part)) for part in (parts if isinstance(parts, Iterable) else [parts])]
    except (TypeError, ValueError) as error:
        raise OptionError(option, value, "must be numbers: 0,2/255,4/255,8/255") from error


def takes_numbers(hint: Any) -> bool:
    """Whether an annotation is of numbers, and not of text besides: a folder may be called 8/2."""
    kinds = {*_kinds(hint)}
    return bool(kinds & {int, float}) and str not in kinds


def _kinds(hint: Any) -> list[Any]:
    """The plain types that an annotation names, inside of unions and containers as well."""
    if get_origin(hint) is Annotated:
        return _kinds(get_args(hint)[0])
    if get_origin(hint) in (Union, types.UnionType, list, tuple, dict):
        return [kind for inner in get_args(hint) for kind in _kinds(inner)]
    return [hint]
