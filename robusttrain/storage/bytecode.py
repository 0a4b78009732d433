"""What code looks up and assigns in its module, and which containers it writes to."""

from __future__ import annotations

import dis
from collections.abc import Mapping
from types import CodeType, FunctionType
from typing import Any

#: Methods of containers that leave them as they are.
_READING = {"get", "items", "keys", "values", "index", "count", "copy"}
_STORING = {"STORE_SUBSCR", "STORE_SLICE", "DELETE_SUBSCR"}
_ATTRIBUTE = {"LOAD_ATTR", "LOAD_METHOD"}


def written(name: str, around: dict[str, Any]) -> bool:
    """Whether a module (its globals) holds a container by this name, and code that changes it: a
    cache or a log, and no table.
    """
    if not isinstance(around[name], Mapping | list | set):
        return False
    values = [*around.values()]
    of_classes = (
        vars(each).values()
        for each in values
        if isinstance(each, type) and each.__module__ == around.get("__name__")
    )
    held = [*values, *(item for each in of_classes for item in each)]
    return any(_writes(code, name) for code in map(_code_of, held) if code is not None)


def _code_of(value: Any) -> CodeType | None:
    """The code of a function, whatever is around it; None of anything else."""
    value = value.fget if isinstance(value, property) else getattr(value, "__func__", value)
    value = getattr(value, "__wrapped__", value)
    return value.__code__ if isinstance(value, FunctionType) else None


def _writes(code: CodeType, name: str) -> bool:
    """Whether code stores in ``name[...]``, or calls a method of it that may change it."""
    if any(_writes(each, name) for each in code.co_consts if isinstance(each, CodeType)):
        return True
    if name not in code.co_names:
        return False
    steps = [*dis.get_instructions(code)]
    # A store stands, in the text, where what it stores in does. Without places all may be one.
    stores = {_place(each) for each in steps if each.opname in _STORING}
    for here, following in zip(steps, steps[1:], strict=False):
        if here.opname in ("LOAD_GLOBAL", "LOAD_NAME") and here.argval == name:
            if following.opname in _ATTRIBUTE and following.argval not in _READING:
                return True
            if _place(here) in stores:
                return True
    return False


def _place(step: dis.Instruction) -> tuple[int | None, int | None]:
    """Line and column where a step's text begins."""
    place = step.positions
    return (None, None) if place is None else (place.lineno, place.col_offset)


def names_of(code: CodeType) -> tuple[list[str], set[str]]:
    """The names that a function looks up, and those that it assigns in its module; those of
    functions inside it among them.
    """
    assigned = {each.argval for each in dis.get_instructions(code) if each.opname == "STORE_GLOBAL"}
    looked_up = [*code.co_names]
    for each in code.co_consts:
        if isinstance(each, CodeType):
            more, others = names_of(each)
            looked_up, assigned = looked_up + more, assigned | others
    return looked_up, assigned
