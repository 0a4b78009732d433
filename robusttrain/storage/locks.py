"""Locks for files that several processes want: one process makes a file, the others wait for it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout


@contextmanager
def alone(path: Path, what: str, say: Callable[[str], None], wait: bool = True) -> Iterator[bool]:
    """Hold the lock of ``path``, and yield whether it is held. A killed process loses its lock.

    Args:
        path: the file to make; the lock is a hidden file beside it.
        what: the file's name for a user who has to wait.
        say: prints a line, if this process has to wait.
        wait: whether to wait for a process that holds the lock, instead of going on without it.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(path.parent / f".{path.name}.lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        if not wait:
            yield False
            return
        say(f"another process makes {what}: waiting for it")
        lock.acquire()
    try:
        yield True
    finally:
        lock.release()
