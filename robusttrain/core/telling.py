"""How a long run is heard: it says lines and shows progress to whoever listens, and prints nothing
by itself.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass

from pytorch_lightning.utilities import rank_zero_only

#: Takes a line for the user.
Say = Callable[[str], None]
#: A bar: what is done and how much there is of it (None: do not show one); inside, advances it.
Progress = Callable[[str, float | None], AbstractContextManager[Callable[[float], None]]]


def first_process() -> bool:
    """Whether this is the only process, or the first of several: that one speaks for all."""
    return not getattr(rank_zero_only, "rank", 0)


def silence(line: str) -> None:
    """Say nothing."""


@contextmanager
def no_bar(what: str, total: float | None) -> Iterator[Callable[[float], None]]:
    """Show no progress."""
    yield lambda count: None


@dataclass(frozen=True)
class Telling:
    """Who listens to a run; nobody by default.

    Args:
        say: takes a line.
        progress: shows a bar.
    """

    say: Say = silence
    progress: Progress = no_bar


#: Nobody listens.
SILENT = Telling()
