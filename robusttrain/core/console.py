"""The terminal, for the commands; nothing below the commands prints."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import Progress

from robusttrain.core.telling import Telling, first_process

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


@contextmanager
def bar(what: str, total: float | None) -> Iterator[Callable[[float], None]]:
    """A progress bar, if there is a terminal to draw it on and something to count."""
    silent = total is None or not sys.stderr.isatty()
    with Progress(console=console, disable=silent) as progress:
        task = progress.add_task(what, total=total)
        yield lambda count: progress.advance(task, count)


#: Telling for a user who listens.
ALOUD = Telling(say, bar)
