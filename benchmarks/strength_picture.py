"""The curves of `benchmarks.strength` as one picture."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from benchmarks.strength_contender import NAMES

COLOURS = {
    "ours": "#c0392b",
    "torchattacks": "#2980b9",
    "foolbox": "#27ae60",
    "adv-lib": "#8e44ad",
    "autoattack": "#7f8c8d",
}
TITLES = {"robust_accuracy": "robust accuracy", "median_distance": "median distance"}


def draw(report: dict[str, Any], path: str) -> None:
    """A row for each model; robust accuracy and median distance in each norm; black is the best of
    all, colours are libraries.
    """
    models = report["models"]
    panels = [(norm, measure) for norm in NAMES for measure in TITLES]
    figure = Figure(figsize=(4 * len(panels), 3.2 * len(models)), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(len(models), len(panels), squeeze=False)
    for row, (model, norms) in zip(axes, models.items(), strict=True):
        for axis, (norm, measure) in zip(row, panels, strict=True):
            if norm not in norms:
                axis.set_axis_off()
                continue
            part = norms[norm]
            axis.set_title(
                f"{model}, {NAMES[norm]}: {TITLES[measure]} ({part['images']} images)", fontsize=9
            )
            panel(axis, part["budgets"], part[measure])
            if measure == "median_distance":
                least = [each for each in part[measure]["best_of_all"] if each is not None]
                if least:
                    axis.set_ylim(0.9 * min(least), 3 * min(least))
    for axis in axes[-1]:
        axis.set_xlabel("queries (forward + backward)", fontsize=8)
    legend = {
        label: handle
        for axis in axes.flat
        for handle, label in zip(*axis.get_legend_handles_labels(), strict=True)
    }
    figure.legend(legend.values(), legend.keys(), loc="outside lower center", ncols=len(legend))
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=80)


def panel(axis: Axes, budgets: list[int], part: dict[str, Any]) -> None:
    """The curves of one measure."""
    for name, values in part["curves"].items():
        library = name.rsplit("(", 1)[1].rstrip(")")
        axis.plot(
            budgets,
            drawn(values),
            color=COLOURS.get(library),
            linewidth=1.6 if library == "ours" else 0.9,
            zorder=3 if library == "ours" else 2,
            label=library,
        )
    best = drawn(part["best_of_all"])
    axis.plot(budgets, best, "k--", linewidth=1.2, zorder=4, label="best of all")
    axis.set_xscale("log")
    axis.grid(alpha=0.3)


def drawn(values: list[float | None]) -> list[float]:
    """Numbers that matplotlib leaves out where there is none."""
    return [float("nan") if value is None else value for value in values]
