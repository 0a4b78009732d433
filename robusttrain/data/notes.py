"""Notes on what was assumed of files from elsewhere: logged, and stored with the data."""

from __future__ import annotations

import logging
import os
import shlex

logger = logging.getLogger(__name__)


def note(notes: list[str], line: str) -> None:
    """Add a line on what was assumed of the data, and log the line, unless it is there already."""
    if line not in notes:
        notes.append(line)
        logger.warning("%s", line)


def shown(name: str | os.PathLike[str]) -> str:
    """A path or name that can be printed, whatever bytes it has."""
    return os.fspath(name).encode("utf-8", "backslashreplace").decode()


def pasted(name: str | os.PathLike[str]) -> str:
    """A path as a part of a command that can be pasted: in quotes where it has blanks."""
    return shlex.quote(shown(name))
