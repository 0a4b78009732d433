"""How a process of ours starts: ``robusttrain COMMAND``, ``train.py``, ``evaluate.py``."""

from __future__ import annotations

import difflib
import importlib
import os
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

from robusttrain.commands import front
from robusttrain.core.allocator import keep_freed_memory
from robusttrain.core.errors import OptionError, UserError
from robusttrain.core.stopping import FULL, heeding_sigterm
from robusttrain.core.typed import typed_as_console

#: Words that are no commands, and what does it.
ELSEWHERE = {
    "transfer": "evaluate --models A B",
    **dict.fromkeys(("attack", "audit", "test", "eval"), "evaluate"),
}


def console() -> NoReturn:
    """``robusttrain COMMAND ...``, and ``python -m robusttrain COMMAND ...``."""
    _open_closed_streams()
    typed_as_console()
    name, *arguments = sys.argv[1:] or ["--help"]
    if name in ("--help", "-h", "help"):
        _say(front.help_for(None))
    if name == "--version":
        from robusttrain.core.version import __version__

        _say(__version__)
    if name not in front.COMMANDS:
        near = difflib.get_close_matches(name, front.COMMANDS, n=1)
        near = [ELSEWHERE[name]] if name in ELSEWHERE else near
        hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(front.COMMANDS)}"
        _refuse("robusttrain", UserError(f"{name}: no such command; {hint}"))
    run(name, arguments, f"robusttrain {name}")


def start(name: str) -> NoReturn:
    """``train.py`` or ``evaluate.py``, with the arguments of this process."""
    run(name, sys.argv[1:], sys.argv[0].rpartition("/")[2])


def run(name: str, arguments: list[str], program: str) -> NoReturn:
    """Answer at once where that is possible, else run the command.

    Args:
        name: of the command.
        arguments: of it.
        program: how the user names it, for errors.
    """
    _open_closed_streams()
    try:
        if not _has_folder():  # torch would end the process in a line of its own
            raise UserError("the folder that this was started in is deleted: change to another")
        transfer = "--models" in arguments  # has options, and help, of its own
        if {"--help", "-h"} & {*arguments} and not transfer:
            if name not in front.LONG or arguments[-1] != "all":
                _say(front.help_for(name))
            # The line of train.py chooses among three commands, each with options of its own.
            arguments = arguments[:-1] if name == "train" else ["--help"]
        if name == "list" or "--list" in arguments:
            front.list_presets(arguments if name == "list" else ())
            sys.exit(0)
        if not transfer:
            front.refuse_at_once(arguments, name)
        # Of several processes of a run the first one speaks.
        first = os.environ.get("LOCAL_RANK", "0") == "0"
        for line in front.said_again(arguments) if first else ():
            sys.stderr.write(f"{line}\n")
    except UserError as error:
        _refuse(program, error)
    _forget_rank()
    # OpenMP's threads spin while they wait, at the cost of every other process on these cores:
    # beside a second one, g takes several times as long. Sleeping costs nothing where nobody else
    # computes. The library reads this once, when torch loads it.
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    try:
        main(importlib.import_module(f"robusttrain.commands.{name}").run, arguments, program)
    except KeyboardInterrupt:  # while torch is still being read
        sys.exit(130)


def _open_closed_streams() -> None:
    """Where whoever started this process closed a stream (``2>&-``, some daemons), nothing is read
    or printed there. Else nothing would start, and the next file that is opened would take the
    stream's number, and get what libraries print.
    """
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # the lowest free number: this one
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, "w" if number else "r"))  # noqa: SIM115


def _has_folder() -> bool:
    """Whether the folder that this process was started in is still there."""
    try:
        os.getcwd()
    except FileNotFoundError:
        return False
    return True


def _forget_rank() -> None:
    """Drop a RANK that none of the launchers has set which Lightning knows by it, before Lightning
    is read: it would take this process, the only one, for a helper, which says and writes nothing.
    """
    launched = {"TORCHELASTIC_RUN_ID", "KUBERNETES_PORT"} & {*os.environ}
    if not launched and (rank := os.environ.pop("RANK", None)):
        sys.stderr.write(f"RANK={rank} is set, and no torchrun is at work: it is left aside\n")


def main(
    command: Callable[[list[str]], None],
    arguments: list[str] | None = None,
    program: str | None = None,
) -> NoReturn:
    """Run a command: its errors become one line each and exit code 2, Ctrl-C exit code 130, SIGTERM
    143.

    Args:
        command: takes the arguments.
        arguments: of the command line; None for those of this process.
        program: how the user names the command; None for the file of this process.
    """
    from robusttrain.config.classes import look_in  # loads torch
    from robusttrain.core.console import Saying, warn_in_sentences

    arguments = sys.argv[1:] if arguments is None else arguments
    program = program or sys.argv[0].rpartition("/")[2]
    look_in(Path.cwd())  # where the user's own modules lie, wherever this program does
    threading.excepthook = _in_a_thread
    try:
        keep_freed_memory()
        Saying.of("robusttrain")
        warn_in_sentences()
        with heeding_sigterm():
            command(arguments)
    except UserError as error:
        _refuse(program, error)
    except OSError as error:
        if error.errno not in FULL:
            raise
        # TensorBoard gives names as bytes.
        where = f"{os.fsdecode(error.filename)}: " if error.filename else ""
        _refuse(program, UserError(f"{where}{FULL[error.errno]}; what was finished is kept"))
    except KeyboardInterrupt:
        sys.exit(130)
    except SystemExit as ended:  # Lightning turns an interruption into exit code 1
        if isinstance(ended.__context__, KeyboardInterrupt):
            sys.exit(130)
        raise
    sys.exit(0)


def _in_a_thread(raised: threading.ExceptHookArgs) -> None:
    """A full disk, or a folder that is gone, ends TensorBoard's thread, and then the training that
    writes by it, which says so in one line: no traceback before that.
    """
    theirs = type(raised.thread).__module__.startswith("tensorboard.")
    failed = raised.exc_value
    if not isinstance(failed, OSError) or not (theirs or failed.errno in FULL):
        threading.__excepthook__(raised)


def _say(text: str) -> NoReturn:
    sys.stdout.write(text + "\n")
    sys.exit(0)


def _refuse(program: str, error: UserError) -> NoReturn:
    # Builders name options without the dashes that a user types.
    bare = isinstance(error, OptionError) and not error.option.startswith("--")
    one_line = ("--" if bare else "") + " ".join(str(error).split())
    sys.stderr.write(f"{program}: error: {one_line}\n")
    sys.exit(2)
