"""What an error in somebody else's code says, and where it was raised."""

from __future__ import annotations

import traceback

from robusttrain.core.errors import first_line
from robusttrain.storage.libraries import is_library


def said(error: Exception) -> str:
    """The error's line, and its kind where that is none of what models say of images."""
    # timm's transformers assert their size; others index an image, or call what it does not have
    plain = isinstance(error, RuntimeError | AssertionError | ValueError | IndexError | TypeError)
    return first_line(error) if plain else f"{type(error).__name__}: {first_line(error)}"


def place(error: Exception) -> str:
    """Where in somebody's own code it was raised; nothing where that is a library's."""
    raised = traceback.extract_tb(error.__traceback__)
    frames = [frame for frame in raised if not is_library(frame.filename)]
    return f" ({frames[-1].filename}, line {frames[-1].lineno})" if frames else ""
