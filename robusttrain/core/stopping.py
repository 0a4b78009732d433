"""Stopping on request, SIGTERM, which Slurm, systemd, docker and ``kill`` send, and Ctrl-C; because
a disk takes no more; and because another process of the run is gone.
"""

from __future__ import annotations

import errno
import os
import re
import signal
import subprocess
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from robusttrain.core.errors import UserError

#: The exit code that a shell reports for a process ended by SIGTERM: 128 plus the signal's number.
TERMINATED = 128 + signal.SIGTERM
#: Errors of a disk that takes no more, in words.
FULL = {
    errno.ENOSPC: "the disk is full",
    errno.EDQUOT: "the disk quota is used up",
    errno.EFBIG: "a file may not grow so large here (ulimit -f, or the file system)",
    errno.EROFS: "the disk is read-only by now (as after an error of the disk)",
    errno.EIO: "the disk failed, or the terminal is gone (input/output error)",
    errno.ESTALE: "the network folder is gone",
}
#: Errors of a folder that was taken away, or may not be written to any more.
TAKEN = (errno.ENOENT, errno.ENOTDIR, errno.EEXIST, errno.EACCES, errno.EPERM)

#: What gloo and NCCL say where another process of the group is gone.
GONE = re.compile(r"(closed|reset) by peer|remote process exit")
#: What torch says where a process that loads batches is gone.
LOADER = re.compile(r"DataLoader worker \(pid\S* ([\d, ]+)\) (?:is killed|exited)")
#: What says how to go on, of the blocks of `saying_how_to_go_on` that this process is in.
_inside: list[Callable[[], str]] = []
#: The processes that this one has started.
_watched: list[Watched] = []


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
def saying_how_to_go_on(
    say: Callable[[str], None], line: Callable[[], str], folders: Sequence[Path] = ()
) -> Iterator[None]:
    """When the block is left by SIGTERM, by Ctrl-C, or by a disk that takes no more, say what was
    saved and how to go on.

    Args:
        say: prints a line.
        line: returns what to say; called only when the block is left.
        folders: that the block writes into.

    Raises:
        UserError: in place of what is raised where another process of the run is gone, or one that
            loads its batches, or a file cannot be written since one of the folders was taken away.
    """
    _inside.append(line)
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
        if error.errno in TAKEN and (name := _inside_of(folders, error.filename)):
            why = (error.strerror or "").lower()
            raise UserError(f"{name}: cannot be written ({why}): {line()}") from error
        raise
    except RuntimeError as error:
        if isinstance(error, UserError):
            raise
        if gone := LOADER.search(str(error)):
            raise UserError(
                f"--data.workers: a process that loads batches (PID {gone[1]}) was ended, as the"
                f" system does where memory is short: fewer of them need less: {line()}"
            ) from error
        if not GONE.search(str(error)):
            raise
        fates = [fate for each in _watched if (fate := each.fate()) is not None]
        what = fates[0] if fates else "another process of this run has ended"
        raise UserError(f"{what}, and this one cannot go on alone: {line()}") from error
    finally:
        _inside.remove(line)


def _inside_of(folders: Sequence[Path], file: Any) -> str | None:
    """The name of a file, if it lies in one of the folders; TensorBoard gives names as bytes."""
    if not isinstance(file, str | bytes | os.PathLike):
        return None
    name = os.fsdecode(file)
    path = Path(name).resolve()
    return name if any(path.is_relative_to(each.resolve()) for each in folders) else None


class Watched:
    """A process of a run that this one has started: where a signal ends it, that is said once.

    Lightning looks at the processes that it started, and when one of them has failed it kills all
    others, this one among them, which then says nothing.

    Args:
        process: what Lightning started.
        name: of the process in the line.
        say: prints a line.
    """

    def __init__(
        self, process: subprocess.Popen[Any], name: str, say: Callable[[str], None]
    ) -> None:
        self._process, self._name, self._say = process, name, say
        self._told = False
        _watched.append(self)

    def poll(self) -> int | None:
        """As Popen's."""
        code = self._process.poll()
        if not self._told and (fate := self.fate()) is not None:
            self._told = True
            how = f": {_inside[-1]()}" if _inside else ""
            self._say(f"stopped: {fate}, and the others end with it{how}")
        return code

    def fate(self) -> str | None:
        """Which signal has ended the process; None where it goes on, has said itself why it ended,
        or was ended by SIGTERM or Ctrl-C, which are somebody's wish.
        """
        number = -(self._process.poll() or 0)
        if number <= 0 or number in (signal.SIGTERM, signal.SIGINT):
            return None
        known = number in {*signal.Signals}
        name = signal.Signals(number).name if known else f"signal {number}"
        memory = ", which the system sends where memory is short" if name == "SIGKILL" else ""
        return f"{self._name} (PID {self._process.pid}) was ended by {name}{memory}"

    def __getattr__(self, name: str) -> Any:
        return getattr(self._process, name)
