"""Where the commands speak; nothing below them does."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import Progress

from robusttrain.core.telling import Telling, first_process

#: Messages and tables; files and pipes get the width that tables need.
#: The first of several processes speaks for all.
console = Console(
    stderr=True, width=None if sys.stderr.isatty() else 140, quiet=not first_process()
)


def say(line: str) -> None:
    """A line for the user, as long as it is."""
    console.print(line, soft_wrap=True, highlight=False)


@contextmanager
def bar(what: str, total: float | None) -> Iterator[Callable[[float], None]]:
    """A progress bar, where there is a terminal to draw it on and something to count."""
    silent = total is None or not sys.stderr.isatty()
    with Progress(console=console, disable=silent) as progress:
        task = progress.add_task(what, total=total)
        yield lambda count: progress.advance(task, count)


#: The user listens.
ALOUD = Telling(say, bar)
