"""What an error in somebody else's code says, and where it was raised."""

from __future__ import annotations

import traceback
from collections.abc import Iterator
from contextlib import contextmanager

from robusttrain.core.errors import UserError, first_line
from robusttrain.storage.libraries import is_library, is_theirs


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


@contextmanager
def told(what: str, who: type) -> Iterator[None]:
    """Tell in one line what a class of the user's raises inside.

    Args:
        what: is done, for the line.
        who: the class; an error in one of this package stays as it is.

    Raises:
        UserError: in place of any other error.
    """
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        if not is_theirs(who.__module__):
            raise
        raise UserError(f"{what} raised {said(error)}{place(error)}") from error
