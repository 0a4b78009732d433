"""Errors that a user can mend: one line that names the option, its value and the fix."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar


class UserError(Exception):
    """Something that the user gave cannot work.

    The command line prints the error's one line and exits with code 2.
    """


class FileError(UserError):
    """A file that cannot be used.

    The code that reads the file knows its path. The code that was given the path knows the option,
    and adds it with `naming`.

    Args:
        path: of the file.
        reason: what is wrong with it, and the fix.
    """

    def __init__(self, path: object, reason: str) -> None:
        super().__init__(path, reason)
        self.path, self.reason = path, reason

    def __str__(self) -> str:
        return f"{self.path}: {self.reason}"


class OptionError(UserError, ValueError):
    """An option has a value that cannot work.

    The constructor that notices the mistake knows only its own argument. The code that builds the
    object from a configuration prepends the object's place (``defense.``), so that the line names
    what the user typed.

    Args:
        option: name of the option, relative to the object that raises.
        value: what was given.
        fix: what to give instead, as the end of a sentence ("must be at least 0").
    """

    def __init__(self, option: str, value: object, fix: str) -> None:
        super().__init__(option, value, fix)
        self.option, self.value, self.fix = option, value, fix

    def __str__(self) -> str:
        return f"{self.option} = {self.value!r}: {self.fix}"

    def under(self, prefix: str) -> OptionError:
        """The same error with ``prefix`` before the option's name."""
        return OptionError(
            f"{prefix}.{self.option}" if prefix else self.option, self.value, self.fix
        )


#: The prefixes of all `under` that are in force.
_PREFIXES: ContextVar[tuple[str, ...]] = ContextVar("prefixes", default=())


@contextmanager
def under(prefix: str) -> Iterator[None]:
    """Put ``prefix`` before the option's name in every OptionError raised inside."""
    before = _PREFIXES.set((*_PREFIXES.get(), prefix))
    try:
        yield
    except OptionError as error:
        raise error.under(prefix) from error
    finally:
        _PREFIXES.reset(before)


def typed(option: str) -> str:
    """An option's full name, as a user types it, for lines that are no errors."""
    name = ".".join(filter(None, (*_PREFIXES.get(), option)))
    return name if name.startswith("--") else f"--{name}"


@contextmanager
def naming(option: str) -> Iterator[None]:
    """Turn every FileError raised inside into an OptionError of the ``option`` with the path."""
    try:
        yield
    except FileError as error:
        raise OptionError(option, str(error.path), error.reason) from error


def at_least(option: str, value: float, lowest: float) -> None:
    """Raise OptionError unless ``value`` is a finite number that is at least ``lowest``."""
    if not (math.isfinite(value) and value >= lowest):
        raise OptionError(
            option,
            value,
            f"must be at least {lowest:g}" + (", and finite" if math.isinf(value) else ""),
        )


def above(option: str, value: float, bound: float) -> None:
    """Raise OptionError unless ``value`` is a finite number greater than ``bound``."""
    if not (math.isfinite(value) and value > bound):
        raise OptionError(option, value, f"must be greater than {bound:g}")


def within(option: str, value: float, lowest: float, highest: float) -> None:
    """Raise OptionError unless ``value`` lies in [lowest, highest]."""
    if not lowest <= value <= highest:
        raise OptionError(option, value, f"must lie between {lowest:g} and {highest:g}")


def below_one(option: str, value: float) -> None:
    """Raise OptionError unless ``value`` lies in [0, 1)."""
    if not 0 <= value < 1:
        raise OptionError(option, value, "must be at least 0 and below 1")


def one_of(option: str, value: object, choices: tuple[str, ...]) -> None:
    """Raise OptionError unless ``value`` is one of ``choices``."""
    if value not in choices:
        raise OptionError(option, value, "must be one of " + ", ".join(choices))


def show(name: object) -> str:
    """A name from a file as one short line, whatever characters it holds."""
    return ascii(str(name)[:80])[1:-1]


def first_line(error: Exception) -> str:
    """The first line of an error, cut short."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:160]
