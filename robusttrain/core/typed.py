"""The form in which the user typed the command, for hints that name commands."""

from __future__ import annotations

import shlex
import sys

_console: list[bool] = []


def typed_as_console() -> None:
    """Note that the user typed ``robusttrain COMMAND``, and not ``python COMMAND.py``."""
    _console[:] = [True]


def command(name: str) -> str:
    """How to type a command: "python evaluate.py" or "robusttrain evaluate"."""
    return f"robusttrain {name}" if _console else f"python {name}.py"


def line() -> str:
    """The command line of this process, as the user typed it."""
    arguments = sys.argv[1:]
    return shlex.join(["robusttrain", *arguments] if _console else ["python", *sys.argv])
