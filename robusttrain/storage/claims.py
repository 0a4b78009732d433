"""Claims: processes and machines that share a folder take batches from each other.

A claim is a lease of `filelock`: a file that only one process can make, and that its owner renews
while it lives. It is free again once its owner is gone: on the same machine when there is no such
process any more, elsewhere when it was not renewed for as long as a lease lasts.

Claims save work, and no figure depends on them: random streams belong to images, so an entry of the
journal is the same whoever makes it, and it is written whole. Where two processes take one batch
after all, the work is done twice.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import SoftFileLease, Timeout

#: Seconds without a sign of life after which another machine's claim is free.
LIFE = 120.0


class Claims:
    """What this process works on, for others to see.

    Args:
        folder: that all share; made as needed.
        life: seconds after which another machine's claim that is not renewed is free; the same for
            all.
    """

    def __init__(self, folder: Path, life: float = LIFE) -> None:
        self.folder, self.life = folder, life
        # One for each name: a lease runs out while it is watched, by the watcher's own clock.
        self._leases: dict[str, SoftFileLease] = {}

    @contextmanager
    def taken(self, name: str) -> Iterator[bool]:
        """Whether the work of this name is this process's while the block runs; False if another
        one is at it.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        lease = self._leases.setdefault(
            name,
            SoftFileLease(
                self.folder / name, lease_duration=self.life, heartbeat_interval=self.life / 6
            ),
        )
        try:
            lease.acquire(timeout=0)
        except Timeout:
            yield False
            return
        try:
            yield True
        finally:
            lease.release()
