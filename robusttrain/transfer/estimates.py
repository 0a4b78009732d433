"""A figure with its interval and its denominator, and tables of such figures."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from rich.markup import escape
from rich.table import Table
from torch import Tensor

from robusttrain.evaluation.scoring import wilson

NOT_AVAILABLE = "n/a"
#: Factor, decimals and suffix by unit.
_UNITS = {"%": (100.0, 1, " %"), "1/255": (255.0, 2, ""), "": (1.0, 3, "")}


@dataclass(frozen=True)
class Estimate:
    """A mean over images and its 95 % interval.

    Args:
        value: the mean; NaN where there was no image.
        low: lower end of the interval; NaN where there is no interval.
        high: upper end.
        images: the denominator, how many images the mean is over.
    """

    value: float
    low: float
    high: float
    images: int

    @classmethod
    def share(cls, scores: Tensor, among: Tensor | None = None) -> Estimate:
        """The mean of scores (n,) in [0, 1], bool or float, over the images of ``among`` (n,) bool,
        with Wilson's interval.

        An image's score is the mean over draws of a random model, or 0 or 1 for a deterministic
        one.
        """
        chosen = scores.double() if among is None else scores[among].double()
        if not len(chosen):
            return cls(math.nan, math.nan, math.nan, 0)
        # Rounding may take the mean out of [0, 1] by a unit in the last place, and Wilson takes a
        # square root.
        mean = min(1.0, max(0.0, chosen.mean().item()))
        low, high = wilson(mean, len(chosen))
        return cls(mean, low, high, len(chosen))

    @classmethod
    def mean(cls, values: Tensor, among: Tensor | None = None) -> Estimate:
        """The mean of any values (n,) over the images of ``among`` (n,) bool, with the normal
        distribution's interval.

        The interval is mean +- 1.96 s / sqrt(n), with s the standard deviation over images. A
        single image has none.
        """
        chosen = values.double() if among is None else values[among].double()
        count = len(chosen)
        if not count:
            return cls(math.nan, math.nan, math.nan, 0)
        mean = chosen.mean().item()
        half = 1.959964 * chosen.std().item() / math.sqrt(count) if count > 1 else math.nan
        return cls(mean, mean - half, mean + half, count)

    def json(self) -> dict[str, Any]:
        """Value, ci95 and images; None in place of NaN, which JSON lacks."""
        value, low, high = (
            None if math.isnan(each) else round(each, 6)
            for each in (self.value, self.low, self.high)
        )
        return {"value": value, "ci95": None if low is None else [low, high], "images": self.images}

    def text(self, unit: str = "%", interval: bool = True) -> str:
        """The text in tables: "63.9 % (59.6 - 68.0)", or "n/a"; units as for `Matrix`."""
        if math.isnan(self.value):
            return NOT_AVAILABLE
        scale, decimals, suffix = _UNITS[unit]
        text = f"{scale * self.value:.{decimals}f}{suffix}"
        if not interval or math.isnan(self.low):
            return text
        to = "to" if self.low < 0 else "-"
        return text + f" ({scale * self.low:.{decimals}f} {to} {scale * self.high:.{decimals}f})"


@dataclass(frozen=True)
class Matrix:
    """Estimates by row and column.

    Args:
        title: what is measured.
        denominator: which images count, in words; empty where all do.
        cells: row to column to estimate; every row has the same columns.
        corner: what rows and columns are, for the first column's head.
        unit: the unit in which values in [0, 1] are shown: "%", "1/255" (pixel values), or "" for
            none.
    """

    title: str
    denominator: str
    cells: Mapping[str, Mapping[str, Estimate]]
    corner: str = "source \\ target"
    unit: str = "%"

    @property
    def rows(self) -> list[str]:
        return list(self.cells)

    @property
    def columns(self) -> list[str]:
        return list(next(iter(self.cells.values()), {}))

    def values(self) -> Tensor:
        """(rows, columns) float64, NaN where there was no image."""
        return torch.tensor(
            [[row[column].value for column in self.columns] for row in self.cells.values()],
            dtype=torch.float64,
        )

    @property
    def images(self) -> int | None:
        """The denominator of all cells; None if the cells differ, and each one shows its own."""
        counts = {cell.images for row in self.cells.values() for cell in row.values()}
        return counts.pop() if len(counts) == 1 else None

    @property
    def caption(self) -> str:
        """What is measured, how many images count, and which."""
        if self.images is None and not self.denominator:
            return self.title
        count = "the" if self.images is None else f"{self.images:,}"
        return f"{self.title}, of {count} images {self.denominator}".rstrip()

    def json(self) -> dict[str, Any]:
        cells = {
            row: {column: cell.json() for column, cell in cells.items()}
            for row, cells in self.cells.items()
        }
        return {
            "title": self.title,
            "denominator": self.denominator,
            "unit": self.unit,
            "cells": cells,
        }

    def lines(self) -> list[list[str]]:
        """The rows of the table as text, without the head. If denominators differ, each cell shows
        its own.
        """

        def text(cell: Estimate) -> str:
            return cell.text(self.unit) + (f" of {cell.images:,}" if self.images is None else "")

        return [
            [name, *(text(row[column]) for column in self.columns)]
            for name, row in self.cells.items()
        ]

    def markdown(self) -> str:
        """Caption and table."""
        head: Sequence[Sequence[str]] = [[self.corner, *self.columns], *self.lines()]
        # A bar in a name would begin a cell.
        text = ["| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in head]
        return "\n".join(
            [self.caption, "", text[0], "|---|" + "---:|" * len(self.columns), *text[1:]]
        )

    def table(self) -> Table:
        """The table for the terminal; brackets in names are no markup."""
        shown = Table(title=escape(self.caption))
        shown.add_column(escape(self.corner))
        for column in self.columns:
            shown.add_column(escape(column), justify="right")
        for row in self.lines():
            shown.add_row(*map(escape, row))
        return shown
