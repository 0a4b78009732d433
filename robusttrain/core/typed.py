"""What the user types: hints name the command in the form in which it was typed."""

from __future__ import annotations

import shlex
import sys

_console: list[bool] = []


def typed_as_console() -> None:
    """This process was started as ``robusttrain COMMAND``, and not as ``python COMMAND.py``."""
    _console[:] = [True]


def command(name: str) -> str:
    """How to type a command: "python evaluate.py" or "robusttrain evaluate"."""
    return f"robusttrain {name}" if _console else f"python {name}.py"


def line() -> str:
    """The command line of this process, as it was typed."""
    arguments = sys.argv[1:]
    return shlex.join(["robusttrain", *arguments] if _console else ["python", *sys.argv])
