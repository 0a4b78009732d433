"""The terminal, for the commands; nothing below the commands prints."""

from __future__ import annotations

import logging
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from rich.console import Console
from rich.progress import Progress, TextColumn

from robusttrain.core.telling import (
    PAUSE,
    Advance,
    Pace,
    Telling,
    duration,
    first_process,
    on_terminal,
    unwatched,
)

#: For messages and tables; files and pipes get the width that tables need. Of several processes
#: only the first one prints.
console = Console(stderr=True, width=None if on_terminal() else 140, quiet=not first_process())


#: Where our own code lies, and how Python writes a warning.
PACKAGE, ORDINARY = Path(__file__).parents[1], warnings.formatwarning


def say(line: str) -> None:
    """Print a line for the user, unwrapped; brackets in it are no markup."""
    console.print(line, soft_wrap=True, highlight=False, markup=False)


def warn_in_sentences() -> None:
    """From now on, warnings about the user's model are sentences, each once: which line of this
    package raised one helps nobody.
    """
    said: set[str] = set()

    def sentence(
        message: Warning | str,
        category: type[Warning],
        filename: str,
        lineno: int,
        line: str | None = None,
    ) -> str:
        if category is not UserWarning or not Path(filename).is_relative_to(PACKAGE):
            return ORDINARY(message, category, filename, lineno, line)
        text = f"warning: {message}\n"
        if text in said:
            return ""
        said.add(text)
        return text

    warnings.formatwarning = sentence


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
        self.what, self.say, self.clock = what, say, clock
        self.pace, self.last_said = Pace(total, clock), clock()

    def advance(self, count: float, spent: bool = True) -> None:
        """Count, and say how far it is if nothing was said of it for a while."""
        pace, now = self.pace, self.clock()
        pace.advance(count, spent)
        left = pace.left()
        if now - self.last_said < PAUSE or left is None or not 0 < pace.done < pace.total:
            return
        self.last_said = now
        self.say(f"{self.what}: {pace.done / pace.total:.0%} done, about {duration(left)} left")


@contextmanager
def bar(what: str, total: float | None) -> Iterator[Advance]:
    """A progress bar, or lines where there is no terminal to draw it on; nothing where there is
    nothing to count.
    """
    if not total:
        yield unwatched
        return
    if not on_terminal():
        yield Steps(what, total).advance
        return
    # rich's own estimate looks at the last seconds alone, and knows nothing of an earlier run.
    told = (*Progress.get_default_columns()[:-1], TextColumn("{task.fields[left]}"))
    pace = Pace(total)
    with Progress(*told, console=console) as progress:
        task = progress.add_task(what, total=total, left="")

        def advance(count: float, spent: bool = True) -> None:
            pace.advance(count, spent)
            left = pace.left()
            said = "" if left is None else f"about {duration(left)} left"
            progress.update(task, advance=count, left=said)

        yield advance


#: Telling for a user who listens.
ALOUD = Telling(say, bar)
