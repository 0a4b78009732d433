"""How a long run reports: it gives lines and progress to a listener, and prints nothing itself."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from typing import Any, Protocol

from pytorch_lightning.utilities import rank_zero_only

from robusttrain.core.advice import warn

#: Seconds between two lines of progress in a file or pipe: three lines a minute, at most.
PAUSE = 20.0
#: Takes a line for the user.
Say = Callable[[str], None]


class Doubt(str):
    """A line that puts a figure in question: it is heard where nobody wants to see progress."""


class Advance(Protocol):
    """Counts what was done."""

    def __call__(self, count: float, spent: bool = True) -> None:
        """``count`` more is done; ``spent``: in the time of this run, not taken from an earlier
        one.
        """


#: Shows a bar: takes a label and a total (None shows no bar), and gives what advances it.
Progress = Callable[[str, float | None], AbstractContextManager[Advance]]


def first_process() -> bool:
    """Whether this is the only process, or the first of several, which speaks for all."""
    return not getattr(rank_zero_only, "rank", 0)


def duration(seconds: float) -> str:
    """Seconds below a minute, else hours, minutes and seconds."""
    if seconds < 60:
        return f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes // 60:02d}:{minutes % 60:02d}:{rest:02d}"


def on_terminal() -> bool:
    """Whether messages go to a terminal; of a process that has none to speak to, nowhere."""
    return sys.stderr is not None and sys.stderr.isatty()


def silence(said: object) -> None:
    """Say nothing."""


def doubting(said: object) -> None:
    """Hand on doubts alone, as Python's warnings."""
    if isinstance(said, Doubt):
        warn(said.removeprefix("warning: "))


def unwatched(count: float, spent: bool = True) -> None:
    """Count for nobody."""


@contextmanager
def no_bar(what: str, total: float | None) -> Iterator[Advance]:
    """Show no progress."""
    yield unwatched


@dataclass
class Pace:
    """How far work is, and how long the rest will take.

    Args:
        total: of what is counted.
        clock: gives seconds.
    """

    total: float
    clock: Callable[[], float] = time.monotonic
    done: float = 0.0
    given: float = 0.0
    started: float = field(init=False)

    def __post_init__(self) -> None:
        self.started = self.clock()

    def advance(self, count: float, spent: bool = True) -> None:
        """As `Advance`."""
        self.done += count
        self.given += 0.0 if spent else count

    def left(self) -> float | None:
        """Seconds; None as long as nothing was done in this run's time."""
        own = self.done - self.given
        if own <= 0:
            return None
        return (self.clock() - self.started) * max(0.0, self.total - self.done) / own


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


#: Nobody listens; and somebody who wants to hear of doubts alone.
SILENT, QUIET = Telling(), Telling(doubting)
