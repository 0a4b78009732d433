"""Where the commands speak; nothing below them does."""

from __future__ import annotations

import sys

from pytorch_lightning.utilities import rank_zero_only
from rich.console import Console


def first_process() -> bool:
    """Whether this is the only process, or the first of several."""
    return not getattr(rank_zero_only, "rank", 0)


#: Messages and tables; files and pipes get the width that tables need.
#: The first of several processes speaks for all.
console = Console(
    stderr=True, width=None if sys.stderr.isatty() else 140, quiet=not first_process()
)


def say(line: str) -> None:
    """A line for the user, as long as it is."""
    console.print(line, soft_wrap=True, highlight=False)
