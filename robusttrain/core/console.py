"""The terminal, for the commands; nothing below the commands prints."""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import Progress

from robusttrain.core.telling import PAUSE, Telling, duration, first_process

#: For messages and tables; files and pipes get the width that tables need. Of several processes
#: only the first one prints.
console = Console(
    stderr=True, width=None if sys.stderr.isatty() else 140, quiet=not first_process()
)


def say(line: str) -> None:
    """Print a line for the user, unwrapped; brackets in it are no markup."""
    console.print(line, soft_wrap=True, highlight=False, markup=False)


class Saying(logging.Handler):
    """Says what rooms below log, each line once, since a data set may be read several times."""

    def __init__(self) -> None:
        super().__init__()
        self._said: set[str] = set()

    def emit(self, record: logging.LogRecord) -> None:
        line = record.getMessage()
        if line not in self._said:
            self._said.add(line)
            say(line)

    @classmethod
    def of(cls, name: str) -> None:
        """From now on, say what is logged under this name, from level INFO on."""
        logger = logging.getLogger(name)
        logger.setLevel(logging.INFO)
        logger.handlers = [each for each in logger.handlers if not isinstance(each, cls)]
        logger.addHandler(cls())


class Steps:
    """Progress where there is no terminal for a bar: a line now and then.

    Args:
        what: is done.
        total: of what is counted.
        say: takes a line.
        clock: gives seconds.
    """

    def __init__(
        self,
        what: str,
        total: float,
        say: Callable[[str], None] = say,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.what, self.total, self.say, self.clock = what, total, say, clock
        self.done = 0.0
        self.started = self.last_said = clock()

    def advance(self, count: float) -> None:
        """Count, and say how far it is if nothing was said of it for a while."""
        self.done += count
        now = self.clock()
        if now - self.last_said < PAUSE or not 0 < self.done < self.total:
            return
        self.last_said = now
        left = (now - self.started) * (self.total - self.done) / self.done
        self.say(f"{self.what}: {self.done / self.total:.0%} done, about {duration(left)} left")


@contextmanager
def bar(what: str, total: float | None) -> Iterator[Callable[[float], None]]:
    """A progress bar, or lines where there is no terminal to draw it on; nothing where there is
    nothing to count.
    """
    if not total:
        yield lambda count: None
        return
    if not sys.stderr.isatty():
        yield Steps(what, total).advance
        return
    with Progress(console=console) as progress:
        task = progress.add_task(what, total=total)
        yield lambda count: progress.advance(task, count)


#: Telling for a user who listens.
ALOUD = Telling(say, bar)
