"""Files that several processes want to make: one of them makes each, the others wait and find
it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout


@contextmanager
def alone(path: Path, what: str, say: Callable[[str], None], wait: bool = True) -> Iterator[bool]:
    """Hold the lock of ``path``; a process that is killed holds nobody up. Yields whether it is
    held.

    Args:
        path: what is to be made; the lock is a hidden file beside it.
        what: how to name it to a user who has to wait.
        say: prints a line, if this process has to wait.
        wait: for another process that holds it; otherwise go on without it.
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
