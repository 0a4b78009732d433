"""Modules that remember what was asked of them."""

from __future__ import annotations


class Counting:
    """A module whose passes change some of its attributes, and not what it answers."""

    #: The names of these attributes.
    counted: tuple[str, ...] = ()
