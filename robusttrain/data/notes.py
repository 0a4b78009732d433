"""Lines about what was assumed of files from elsewhere: logged, and kept beside the data."""

from __future__ import annotations

import logging
import os

logger = logging.getLogger(__name__)


def note(notes: list[str], line: str) -> None:
    """Add a line on what was assumed about data, and log it, unless it was said before."""
    if line not in notes:
        notes.append(line)
        logger.warning("%s", line)


def shown(name: str | os.PathLike[str]) -> str:
    """A path or name that can be printed, whatever bytes it has."""
    return os.fspath(name).encode("utf-8", "backslashreplace").decode()
