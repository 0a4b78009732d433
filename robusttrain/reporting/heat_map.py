"""A matrix of estimates as a heat map with its numbers."""

from __future__ import annotations

from collections.abc import Collection

import numpy as np
from matplotlib import colormaps
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from robusttrain.reporting.canvas import COLOURS, canvas
from robusttrain.transfer.estimates import Matrix


def heat_map(matrix: Matrix, outlined: Collection[tuple[str, str]] | None = None) -> Figure:
    """Rows by columns, each cell with its value, its 95 % interval, and its denominator where
    denominators differ.

    Args:
        matrix: what is shown; cells that are not available are hatched.
        outlined: (row, column) of the white-box cells, which get a frame; by default those of equal
            names, where rows are sources.
    """
    values = matrix.values().numpy()
    rows, columns = matrix.rows, matrix.columns
    row_name, _, column_name = matrix.corner.partition(" \\ ")
    if outlined is None:
        outlined = [(name, name) for name in rows if row_name == "source"]
    figure = canvas(2.2 + 1.25 * len(columns), 1.5 + 0.62 * len(rows))
    axes = figure.subplots()
    finite = values[np.isfinite(values)]
    low, high = (
        (0.0, 1.0)
        if matrix.unit == "%" or not len(finite)
        else (min(0.0, finite.min()), finite.max())
    )
    colours = colormaps["cividis"]
    axes.imshow(values, cmap=colours, vmin=low, vmax=high, aspect="auto")
    for i, row in enumerate(rows):
        for j, column in enumerate(columns):
            cell = matrix.cells[row][column]
            if not np.isfinite(values[i, j]):
                axes.add_patch(
                    Rectangle(
                        (j - 0.5, i - 0.5),
                        1,
                        1,
                        facecolor="0.92",
                        edgecolor="0.7",
                        hatch="//",
                        linewidth=0,
                    )
                )
            red, green, blue, _ = colours((values[i, j] - low) / (high - low or 1.0))
            dark = np.isfinite(values[i, j]) and 0.3 * red + 0.59 * green + 0.11 * blue < 0.5
            value, _, interval = cell.text(matrix.unit).partition(" (")
            interval = interval[:-1]
            if matrix.images is None:
                interval += f"{', ' if interval else ''}of {cell.images:,}"
            ink = "white" if dark else "black"
            axes.text(
                j,
                i - (0.12 if interval else 0),
                value,
                ha="center",
                va="center",
                color=ink,
                fontsize=10,
            )
            if interval:
                axes.text(j, i + 0.24, interval, ha="center", va="center", color=ink, fontsize=7)
            if (row, column) in outlined:
                axes.add_patch(
                    Rectangle(
                        (j - 0.47, i - 0.45),
                        0.94,
                        0.9,
                        fill=False,
                        edgecolor=COLOURS[3],
                        linewidth=2,
                    )
                )
    axes.set_xticks(range(len(columns)), columns)
    if max(map(len, columns), default=0) > 12:
        axes.tick_params(axis="x", rotation=30)
    axes.set_yticks(range(len(rows)), rows)
    axes.set_ylabel(row_name)
    axes.set_xlabel(column_name + (" (framed: white box)" if outlined else ""))
    axes.set_title(matrix.caption, fontsize=9, wrap=True)
    return figure
