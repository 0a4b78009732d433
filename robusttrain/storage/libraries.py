"""Whose code a file is: that of Python, of an installed package and of this one, or the user's."""

from __future__ import annotations

import sys
import sysconfig
from pathlib import Path

import numpy as np

#: Folders of Python's own code, of installed packages, and of this one.
LIBRARIES = (
    *(Path(sysconfig.get_paths()[name]) for name in ("stdlib", "purelib", "platlib")),
    Path(__file__).parents[1],
    Path(np.__file__).parents[1],
)
#: Where packages are installed, whoever's Python it is.
INSTALLED = {"site-packages", "dist-packages"}


def is_library(path: str | Path) -> bool:
    """Whether a file of code belongs to Python, to an installed package, or to this one."""
    path = Path(path)
    return bool(INSTALLED & {*path.parts}) or any(map(path.is_relative_to, LIBRARIES))


def is_theirs(name: str | None) -> bool:
    """Whether a module, by its name, is the user's: a file of theirs, a script, or a notebook."""
    file = getattr(sys.modules.get(name or ""), "__file__", None)
    return name == "__main__" or (file is not None and not is_library(file))
