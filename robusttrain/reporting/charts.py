"""Line charts of estimates, with their intervals as bands, and bar charts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import cycle

from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from robusttrain.reporting.canvas import COLOURS, canvas
from robusttrain.transfer.estimates import Estimate

_MARKERS = ("o", "s", "^", "D", "v", "P", "X")
_STYLES = ("-", "--", "-.", ":")


def lines(
    series: Mapping[str, Sequence[tuple[float, Estimate | float]]],
    x: str,
    y: str = "success rate",
    percent: bool = True,
    log: bool = False,
    steps: bool = False,
    marks: Mapping[str, float] | None = None,
    title: str = "",
) -> Figure:
    """One line for each series of (x, estimate), its 95 % interval as a band.

    Args:
        series: name to points in any order; points that are not available are left out, and plain
            numbers have no band.
        x: what is on the x-axis, with its unit.
        y: what is on the y-axis.
        percent: whether estimates are shares, told in percent from 0 to 100; else as they are.
        log: a logarithmic x-axis.
        steps: constant between points, without markers: for cumulative distributions.
        marks: vertical lines, name to x (a median, a paper's setting).
        title: above the chart.
    """
    figure = canvas(6.4, 4.2)
    axes = figure.subplots()
    looks = zip(series.items(), cycle(COLOURS[:6]), cycle(_MARKERS), cycle(_STYLES), strict=False)
    for (name, points), colour, marker, style in looks:
        estimates = [
            (at, each if isinstance(each, Estimate) else Estimate(each, each, each, 1))
            for at, each in points
        ]
        shown = sorted((each for each in estimates if each[1].images), key=lambda each: each[0])
        if not shown:
            continue
        at = [each for each, _ in shown]
        where = "steps-post" if steps else "default"
        axes.plot(
            at,
            [estimate.value for _, estimate in shown],
            color=colour,
            linestyle=style,
            marker=None if steps else marker,
            markersize=5,
            drawstyle=where,
            label=name,
        )
        axes.fill_between(
            at,
            [estimate.low for _, estimate in shown],
            [estimate.high for _, estimate in shown],
            color=colour,
            alpha=0.18,
            linewidth=0,
            step="post" if steps else None,
        )
    for (name, place), style in zip((marks or {}).items(), cycle((":", "--", "-.")), strict=False):
        axes.axvline(place, color="0.25", linestyle=style, linewidth=1.2, label=name)
    axes.set_xlabel(x)
    axes.set_ylabel(y)
    if percent:
        axes.set_ylim(-0.02, 1.02)
        axes.yaxis.set_major_formatter(PercentFormatter(1.0, symbol=" %"))
    if log:
        axes.set_xscale("log")
    axes.grid(alpha=0.3)
    axes.set_title(title, fontsize="medium")
    if axes.get_legend_handles_labels()[0]:
        axes.legend(fontsize="small", title="band: 95 % interval", title_fontsize="x-small")
    return figure


def bars(values: Mapping[str, float], title: str, label: str = "accuracy") -> Figure:
    """One bar for each value, the first on top.

    Args:
        values: by name.
        title: above the chart.
        label: what the values are; accuracies have an axis from 0 to 1.
    """
    figure = canvas(7, 1.5 + 0.3 * len(values))
    axes = figure.subplots()
    axes.barh(list(values)[::-1], list(values.values())[::-1], color=COLOURS[0])
    axes.set_xlim(*((0, 1) if label == "accuracy" else (None, None)))
    axes.set_xlabel(label)
    axes.set_title(title, fontsize="medium")
    return figure
