"""Claims: processes and machines that share a folder take batches from each other.

A claim is a lease of `filelock`: a file that only one process can make, and that its owner renews
while it lives. A claim is free again once its owner is gone. On the same machine the owner is gone
when its process is; elsewhere, when the claim was not renewed for as long as a lease lasts.

Claims save work, and no figure depends on them. Random streams belong to images, so an entry of the
journal is the same whichever process makes it, and it is written whole. If two processes take one
batch after all, the work is done twice.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import SoftFileLease, Timeout

#: Seconds after which a claim without an owner is free: its process was killed between making the
#: file and writing its name into it, which takes no time.
NAMELESS = 10.0
#: Seconds without a sign of life after which another machine's claim is free.
LIFE = 120.0


class Claims:
    """The work of this process, for other processes to see.

    Args:
        folder: shared by all processes; made as needed.
        life: seconds after which another machine's claim is free unless renewed; the same for all
            processes.
    """

    def __init__(self, folder: Path, life: float = LIFE) -> None:
        self.folder, self.life = folder, life
        # Leases by name: another owner's lease runs out by the clock of the object that watches it.
        self._leases: dict[str, SoftFileLease] = {}

    @contextmanager
    def taken(self, name: str) -> Iterator[bool]:
        """Claim the work of this name while the block runs; False if another process has it."""
        self.folder.mkdir(parents=True, exist_ok=True)
        lease = self._leases.setdefault(
            name,
            SoftFileLease(
                self.folder / name, lease_duration=self.life, heartbeat_interval=self.life / 6
            ),
        )
        _drop_nameless(self.folder / name)
        try:
            lease.acquire(timeout=0)
        except Timeout:
            yield False
            return
        try:
            yield True
        finally:
            lease.release()


def _drop_nameless(claim: Path) -> None:
    """Remove a claim without an owner, which `filelock` would wait for without end."""
    with suppress(OSError):  # it went by itself
        found = claim.stat()
        # One from the future was left before the clock was set back.
        if not found.st_size and abs(time.time() - found.st_mtime) > NAMELESS:
            claim.unlink()
