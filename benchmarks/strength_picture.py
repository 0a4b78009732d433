"""The curves of `benchmarks.strength` as one picture."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import NullLocator

from benchmarks.strength_contender import NAMES

COLOURS = {
    "ours": "#c0392b",
    "torchattacks": "#2980b9",
    "foolbox": "#27ae60",
    "adv-lib": "#8e44ad",
    "autoattack": "#e67e22",
}
#: Curves lie on one another: each library has its own marker, and place in front or behind.
MARKERS = {"ours": "o", "torchattacks": "s", "foolbox": "^", "adv-lib": "D", "autoattack": "v"}
TITLES = {"robust_accuracy": "robust accuracy", "median_distance": "median distance"}


def draw(report: dict[str, Any], path: str) -> None:
    """A row for each model; robust accuracy and median distance in each norm. A thick line is the
    best implementation of a library at each budget, a faint one a single implementation, black
    the best of all.
    """
    models = report["models"]
    panels = [(norm, measure) for measure in TITLES for norm in NAMES]
    figure = Figure(figsize=(4 * len(panels), 3.2 * len(models)), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(len(models), len(panels), squeeze=False)
    for row, (model, norms) in zip(axes, models.items(), strict=True):
        for axis, (norm, measure) in zip(row, panels, strict=True):
            if norm not in norms:
                axis.set_axis_off()
                continue
            part = norms[norm]
            within = f" within {part['radius']:g}" if measure == "robust_accuracy" else ""
            axis.set_title(f"{model}, {NAMES[norm]}: {TITLES[measure]}{within}", fontsize=10)
            panel(axis, part["budgets"], part[measure])
            if measure == "median_distance":
                focus(axis, part[measure]["best_of_all"])
    for axis in axes[-1]:
        axis.set_xlabel("queries (forward + backward)", fontsize=9)
    legend = {
        label: handle
        for axis in axes.flat
        for handle, label in zip(*axis.get_legend_handles_labels(), strict=True)
    }
    figure.legend(legend.values(), legend.keys(), loc="outside lower center", ncols=len(legend))
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=80)


def panel(axis: Axes, budgets: list[int], part: dict[str, Any]) -> None:
    """The curves of one measure."""
    rows: dict[str, list[list[float]]] = {}
    for name, values in part["curves"].items():
        rows.setdefault(name.rsplit("(", 1)[1].rstrip(")"), []).append(drawn(values))
    for place, (library, curves) in enumerate(rows.items()):
        colour = COLOURS.get(library)
        for curve in curves:
            axis.plot(budgets, curve, color=colour, linewidth=0.7, alpha=0.3, zorder=2)
        least = np.asarray(curves).min(axis=0)
        axis.plot(
            budgets,
            np.where(np.isfinite(least), least, np.nan),
            color=colour,
            marker=MARKERS.get(library),
            markersize=10 - 1.5 * place,
            linewidth=3 - 0.5 * place,
            zorder=3 + place,
            label=library,
        )
    best = drawn(part["best_of_all"])
    axis.plot(budgets, best, "k--", linewidth=1.2, zorder=9, label="best of all")
    axis.set_xscale("log")
    axis.set_xticks(budgets, [f"{budget:,}" for budget in budgets])
    axis.xaxis.set_minor_locator(NullLocator())
    axis.grid(alpha=0.3)


def focus(axis: Axes, best: list[float | None]) -> None:
    """Show what lies near the best of all."""
    there = [each for each in best if each is not None]
    if there and min(there) > 0:
        axis.set_ylim(0.9 * min(there), 3 * min(there))


def drawn(values: list[float | None]) -> list[float]:
    """Infinity where there is no distance: matplotlib leaves it out."""
    return [float("inf") if value is None else value for value in values]
