"""Limits of arguments, written as their types.

``steps: Count`` is an ``int`` of at least 1 for type checkers, for the command line and for
readers. `checked` compares the arguments of a constructor with such limits, and with ``Literal``
types, too.
"""

from __future__ import annotations

import functools
import inspect
import types
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Annotated, Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from robusttrain.core.errors import OptionError, above, at_least, below_one, one_of, within

Class = TypeVar("Class", bound=type)


@dataclass(frozen=True)
class Limit:
    """A limit of a number: a check of `robusttrain.core.errors`, and the bounds for it."""

    check: Callable[..., None]
    bounds: tuple[float, ...]

    def __call__(self, option: str, value: Any) -> None:
        if not hasattr(value, "__float__") or getattr(value, "ndim", None):
            raise OptionError(option, repr(value), "must be a number")
        self.check(option, value, *self.bounds)


#: A whole number from 0 on.
Whole = Annotated[int, Limit(at_least, (0,))]
#: A whole number from 1 on.
Count = Annotated[int, Limit(at_least, (1,))]
#: A number from 0 on.
NonNegative = Annotated[float, Limit(at_least, (0,))]
#: A number above 0.
Positive = Annotated[float, Limit(above, (0,))]
#: A number from 0 to 1.
Share = Annotated[float, Limit(within, (0, 1))]
#: A number from 0 on, below 1.
BelowOne = Annotated[float, Limit(below_one, ())]


def plain_number(value: Any) -> Any:
    """A single number of NumPy's or torch's as Python's own, which JSON and seeds need; anything
    else as it is.
    """
    single = getattr(value, "ndim", None) == 0 and hasattr(value, "item")
    return value.item() if single else value


def checked(cls: Class) -> Class:
    """Class decorator: the constructor compares every argument with its type's limits. Single
    numbers of NumPy's or torch's become Python's.

    None passes where the type allows it, and nowhere else. An error is an `OptionError` that names
    the argument, and comes before the constructor's own code.

    Raises:
        TypeError: the class has no constructor of its own.
    """
    if "__init__" not in vars(cls):
        raise TypeError(
            f"{cls.__name__} has no constructor of its own whose arguments were checked"
        )
    build = vars(cls)["__init__"]
    signature = inspect.signature(build)

    @functools.cache
    def hints() -> dict[str, Any]:
        # Not before the first call: annotations may name classes that come later in the module.
        return get_type_hints(build, vars(inspect.getmodule(cls)), include_extras=True)

    @functools.cache
    def limits() -> dict[str, list[Callable[[str, Any], None]]]:
        return {name: [*_limits(hint)] for name, hint in hints().items()}

    @functools.wraps(build)
    def checking(self: Any, *args: Any, **kwargs: Any) -> None:
        given = signature.bind(self, *args, **kwargs)
        for name, value in given.arguments.items():
            if limits().get(name) or type(value).__module__ == "numpy":
                given.arguments[name] = value = plain_number(value)
            for limit in limits().get(name, ()) if value is not None else ():
                limit(name, value)
        for name, value in given.arguments.items():
            if value is None and name in hints() and not _takes_none(hints()[name]):
                raise OptionError(name, None, f"must be {_in_words(hints()[name])}")
        build(*given.args, **given.kwargs)

    cls.__init__ = checking  # type: ignore[misc]
    return cls


def _takes_none(hint: Any) -> bool:
    """Whether a type has None among its values, or leaves open what they are."""
    origin = get_origin(hint)
    if origin in (Union, types.UnionType):
        return any(map(_takes_none, get_args(hint)))
    if origin is Annotated:
        return _takes_none(get_args(hint)[0])
    if origin is Literal:
        return None in get_args(hint)
    return hint in (Any, None, type(None), object) or isinstance(hint, TypeVar)


def _in_words(hint: Any) -> str:
    """What a value of a type is, as the end of a sentence."""
    origin = get_origin(hint)
    if origin in (Union, types.UnionType):
        return " or ".join(map(_in_words, get_args(hint)))
    if origin is Annotated:
        return _in_words(get_args(hint)[0])
    if origin is Literal:
        return "one of " + ", ".join(map(str, get_args(hint)))
    kind = origin or hint
    names = {int: "a whole number", float: "a number", bool: "true or false", str: "text"}
    names |= {dict: "a mapping"}
    if kind in names:
        return names[kind]
    name = getattr(kind, "__name__", str(kind))
    spelt = name[:2].isupper() and name[0] in "FHLMNRSX"  # letter by letter: an MLP
    return f"{'an' if spelt or name[:1] in 'AEIOUaeio' else 'a'} {name}"


def _limits(hint: Any) -> Iterator[Callable[[str, Any], None]]:
    """The checks that a type implies for a value that is not None."""
    if get_origin(hint) in (Union, types.UnionType):
        # A union of several kinds would need only one of them to fit, so only a single kind beside
        # None is checked.
        kinds = [kind for kind in get_args(hint) if kind is not type(None)]
        if len(kinds) == 1:
            yield from _limits(kinds[0])
    elif get_origin(hint) is Annotated:
        yield from (each for each in get_args(hint)[1:] if isinstance(each, Limit))
    elif get_origin(hint) is Literal:
        choices = get_args(hint)
        yield lambda option, value: one_of(option, value, choices)
