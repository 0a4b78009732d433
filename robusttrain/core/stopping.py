"""Stopping on request, SIGTERM, which Slurm, systemd, docker and ``kill`` send, and Ctrl-C; and
because a disk takes no more.
"""

from __future__ import annotations

import errno
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

#: The exit code that a shell reports for a process ended by SIGTERM: 128 plus the signal's number.
TERMINATED = 128 + signal.SIGTERM
#: Errors of a disk that takes no more, in words.
FULL = {
    errno.ENOSPC: "the disk is full",
    errno.EDQUOT: "the disk quota is used up",
    errno.EFBIG: "a file may not grow so large here (ulimit -f, or the file system)",
}


class Terminated(SystemExit):
    """SIGTERM arrived. The program leaves at once, through every ``finally``."""

    def __init__(self) -> None:
        super().__init__(TERMINATED)


@contextmanager
def heeding_sigterm() -> Iterator[None]:
    """While the block runs, SIGTERM raises `Terminated` in the main thread; a second SIGTERM ends
    the process.

    Lightning's own handler only takes a note for the end of a training step, and in an evaluation
    nobody reads the note. But that handler calls the one before it, which is this one.
    """
    if threading.current_thread() is not threading.main_thread():  # only there can handlers be set
        yield
        return

    def leave(number: int, frame: Any) -> None:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        raise Terminated

    before = signal.signal(signal.SIGTERM, leave)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


@contextmanager
def saying_how_to_go_on(say: Callable[[str], None], line: Callable[[], str]) -> Iterator[None]:
    """When the block is left by SIGTERM, by Ctrl-C, or by a disk that takes no more, say what was
    saved and how to go on.

    Args:
        say: prints a line.
        line: returns what to say; called only when the block is left.
    """
    try:
        yield
    except KeyboardInterrupt:
        say(f"interrupted: {line()}")
        raise
    except Terminated:
        say(f"terminated: {line()}")
        raise
    except SystemExit as ended:
        if isinstance(ended.__context__, KeyboardInterrupt):  # Lightning's way of passing it on
            say(f"interrupted: {line()}")
        raise
    except OSError as error:
        if error.errno in FULL:
            say(f"stopped: {line()}")
        raise
