"""Files that several processes want to make: one of them makes each, the others wait and find it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from robusttrain.cli import console


@contextmanager
def alone(path: Path, what: str, wait: bool = True) -> Iterator[bool]:
    """Hold the lock of ``path``; a process that is killed holds nobody up. Yields whether it is held.

    Args:
        path: what is to be made; the lock is a hidden file beside it.
        what: how to name it to a user who has to wait.
        wait: for another process that holds it; otherwise go on without it.
    """
    import fcntl  # not on Windows

    path.parent.mkdir(parents=True, exist_ok=True)
    with (path.parent / f".{path.name}.lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if not wait:
                yield False
                return
            console.print(f"another process makes {what}: waiting for it", soft_wrap=True)
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield True
