"""Claims: processes and machines that share a folder take batches from each other.

A claim is a file that only one process can make and that its owner touches while it lives. It is
free again once its owner is gone: on the same machine when there is no such process any more,
elsewhere when it was long not touched.

Claims save work, and no figure depends on them: random streams belong to images, so an entry of the
journal is the same whoever makes it, and it is written whole. Where two processes take one batch
after all, the work is done twice.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import threading
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

#: Seconds without a sign of life after which another machine's claim is free.
LIFE = 120.0


def _start_of(pid: int) -> str:
    """When a process of this machine started, as the kernel counts; empty where that is not
    told.
    """
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19]
    except (OSError, IndexError):
        return ""


def _place() -> str:
    """Where process numbers mean the same: the machine, and the container on it."""
    try:
        inside = os.readlink("/proc/self/ns/pid")
    except OSError:
        inside = ""
    return f"{socket.gethostname()} {uuid.getnode()} {inside}"


class Claims:
    """What this process works on, for others to see.

    Args:
        folder: that all share; made as needed.
        life: seconds after which another machine's untouched claim is free.
    """

    def __init__(self, folder: Path, life: float = LIFE) -> None:
        self.folder, self.life = folder, life

    @contextmanager
    def taken(self, name: str) -> Iterator[bool]:
        """Whether the work of this name is this process's while the block runs; False if another
        one is at it.
        """
        path = self.folder / name
        self.folder.mkdir(parents=True, exist_ok=True)
        if not (self._make(path) or (self._free(path) and self._replace(path))):
            yield False
            return
        over = threading.Event()
        beat = threading.Thread(target=self._beat, args=(path, over.wait), daemon=True)
        beat.start()
        try:
            yield True
        finally:
            over.set()
            beat.join()
            path.unlink(missing_ok=True)

    def _beat(self, path: Path, over: Callable[[float], bool]) -> None:
        while not over(self.life / 6):
            with contextlib.suppress(OSError):  # a shared folder may be away for a moment
                os.utime(path)

    def _make(self, path: Path) -> bool:
        """Make the claim unless it is there."""
        try:
            made = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY)
        except FileExistsError:
            return False
        with os.fdopen(made, "w") as claim:
            claim.write(
                json.dumps({"place": _place(), "pid": os.getpid(), "start": _start_of(os.getpid())})
            )
        return True

    def _replace(self, path: Path) -> bool:
        """Take a free claim's place."""
        path.unlink(missing_ok=True)
        return self._make(path)

    def _free(self, path: Path) -> bool:
        """Whether the owner of a claim is gone."""
        try:
            owner: dict[str, Any] = json.loads(path.read_text())
        except FileNotFoundError:
            return True
        except ValueError:  # its owner is about to write it, or died there
            owner = {}
        if owner.get("place") == _place():
            # A number is given to another process some day, but the two started at different times.
            return not _alive(owner["pid"]) or _start_of(owner["pid"]) != owner["start"]
        try:
            return self._now() - path.stat().st_mtime > self.life
        except FileNotFoundError:
            return True

    def _now(self) -> float:
        """The time by the clock of the folder's machine, which need not be this one's."""
        probe = self.folder / f".now.{uuid.uuid4().hex}"
        probe.touch()
        now = probe.stat().st_mtime
        probe.unlink(missing_ok=True)
        return now


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
