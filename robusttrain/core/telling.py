"""How a long run reports: it gives lines and progress to a listener, and prints nothing itself."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Any

from pytorch_lightning.utilities import rank_zero_only

#: Seconds between two lines of progress in a file or pipe: three lines a minute, at most.
PAUSE = 20.0
#: Takes a line for the user.
Say = Callable[[str], None]
#: Shows a bar: takes a label and a total (None shows no bar), and gives a function that advances
#: it.
Progress = Callable[[str, float | None], AbstractContextManager[Callable[[float], None]]]


def first_process() -> bool:
    """Whether this is the only process, or the first of several, which speaks for all."""
    return not getattr(rank_zero_only, "rank", 0)


def duration(seconds: float) -> str:
    """Seconds below a minute, else hours, minutes and seconds."""
    if seconds < 60:
        return f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes // 60:02d}:{minutes % 60:02d}:{rest:02d}"


def silence(said: object) -> None:
    """Say nothing."""


@contextmanager
def no_bar(what: str, total: float | None) -> Iterator[Callable[[float], None]]:
    """Show no progress."""
    yield lambda count: None


@dataclass(frozen=True)
class Telling:
    """The listener of a run; by default nobody listens.

    Args:
        say: takes a line.
        progress: shows a bar.
        figures: takes what ``results.json`` holds as soon as all figures are there, before they are
            audited.
    """

    say: Say = silence
    progress: Progress = no_bar
    figures: Callable[[Mapping[str, Any]], object] = silence


#: Nobody listens.
SILENT = Telling()
