"""The curves of `benchmarks.strength` as one picture."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

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
    panels = [(norm, measure) for norm in next(iter(models.values())) for measure in TITLES]
    figure = Figure(figsize=(4 * len(panels), 3.2 * len(models)), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(len(models), len(panels), squeeze=False)
    for row, (model, norms) in zip(axes, models.items(), strict=True):
        for axis, (norm, measure) in zip(row, panels, strict=True):
            part = norms[norm][measure]
            for name, values in part["curves"].items():
                library = name.rsplit("(", 1)[1].rstrip(")")
                mine = library == "ours"
                axis.plot(
                    report["budgets"],
                    [float("nan") if value is None else value for value in values],
                    color=COLOURS.get(library),
                    linewidth=1.6 if mine else 0.9,
                    zorder=3 if mine else 2,
                    label=library,
                )
            best = [float("nan") if value is None else value for value in part["best_of_all"]]
            axis.plot(report["budgets"], best, "k--", linewidth=1.2, zorder=4, label="best of all")
            axis.set_xscale("log")
            if measure == "median_distance":
                finite = [value for value in best if value == value]
                if finite:
                    axis.set_ylim(0.9 * min(finite), 3 * min(finite))
            axis.set_title(f"{model}, {norm}: {TITLES[measure]}", fontsize=9)
            axis.grid(alpha=0.3)
    for axis in axes[-1]:
        axis.set_xlabel("queries (forward + backward)", fontsize=8)
    handles, labels = axes[0][0].get_legend_handles_labels()
    legend = dict(zip(labels, handles, strict=True))
    figure.legend(legend.values(), legend.keys(), loc="outside lower center", ncols=len(legend))
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=80)
