"""Decision regions of several models in one plane of images [P5 figures 3-5; P3 figure 5]."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import numpy as np
import torch
from matplotlib.artist import Artist
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from robusttrain.reporting.canvas import COLOURS, canvas
from robusttrain.transfer.planes import Regions

_TRUE, _OTHER, _BROKEN = "#EDEDED", "#6E6E6E", "#000000"
_STYLES: tuple[Literal["-", "--", "-.", ":"], ...] = ("-", "--", "-.", ":")
AXES = ("u, along the gradient", "v, random orthogonal direction")


def _extent(regions: Regions) -> tuple[float, float, float, float]:
    """Left, right, bottom, top in units of 1/255; the outermost points are the middles of the
    outermost squares.
    """
    points = len(next(iter(regions.classes.values())))
    edge = 255 * regions.reach * points / (points - 1)
    return (-edge, edge, -edge, edge)


def _shape(count: int) -> tuple[int, int]:
    """Rows and columns of panels, at most five beside each other and rows about equally long."""
    rows = -(-count // 5)
    return rows, -(-count // rows)


def decision_regions(
    regions: Regions,
    label: int,
    name: Callable[[int], str] = str,
    axes: tuple[str, str] = AXES,
    title: str = "",
) -> Figure:
    """What each model answers around an image, one panel a model; a class has the same colour in
    all of them.

    Args:
        regions: answers on the grid.
        label: the image's true class, light grey.
        name: from a class to its name.
        axes: what u and v are; both are RMSD in units of 1/255.
        title: above the panels.

    The seven largest other classes have colours; what is left is dark grey, and answers that are
    not finite are black.
    """
    together = torch.cat([answers.flatten() for answers in regions.classes.values()])
    classes, counts = together[(together >= 0) & (together != label)].unique(return_counts=True)
    order = counts.argsort(descending=True, stable=True)
    coloured = classes[order][: len(COLOURS)].tolist()
    others = len(classes) - len(coloured)
    look = ListedColormap([_TRUE, *COLOURS, _OTHER, _BROKEN])

    rows, columns = _shape(len(regions.classes))
    figure = canvas(2.5 * columns + 2.0, 2.6 * rows + 0.5)
    panels = figure.subplots(rows, columns, squeeze=False, sharex=True, sharey=True).flatten()
    answered = regions.counts()
    for panel, (model, answers) in zip(panels, regions.classes.items(), strict=False):
        colour = torch.full_like(answers, len(COLOURS) + 1)
        colour[answers == label] = 0
        colour[answers < 0] = len(COLOURS) + 2
        for number, each in enumerate(coloured):
            colour[answers == each] = number + 1
        panel.imshow(
            colour.numpy(),
            cmap=look,
            vmin=0,
            vmax=look.N - 1,
            origin="lower",
            extent=_extent(regions),
            aspect="equal",
        )
        panel.plot(0, 0, marker="+", color="black", markersize=9)
        panel.set_title(f"{model}: {answered[model]} classes", fontsize=9)
    for missing in range(len(regions.classes), len(panels)):
        panels[missing].set_visible(False)
        # Its shared axis has nothing below any more
        panels[missing - columns].tick_params(labelbottom=True)
    handles: list[Artist] = [Patch(facecolor=_TRUE, edgecolor="0.5", label=f"{name(label)} (true)")]
    handles += [Patch(facecolor=COLOURS[i], label=name(each)) for i, each in enumerate(coloured)]
    if others:
        handles.append(Patch(facecolor=_OTHER, label=f"{others} other classes"))
    if (together < 0).any():
        handles.append(Patch(facecolor=_BROKEN, label="not finite"))
    handles.append(
        Line2D([], [], color="black", marker="+", linestyle="", markersize=9, label="the image")
    )
    figure.legend(handles=handles, loc="outside right center", fontsize=8, frameon=False)
    figure.supxlabel(f"{axes[0]} (RMSD, 1/255)", fontsize=9)
    figure.supylabel(f"{axes[1]}\n(RMSD, 1/255)", fontsize=9, multialignment="center")
    if title:
        figure.suptitle(title, fontsize=10)
    return figure


def boundaries(
    regions: Regions,
    wanted: int,
    what: str = "true class",
    axes: tuple[str, str] = AXES,
    title: str = "",
) -> Figure:
    """The border of one class's region, all models in one panel [P5 figures 4, 5].

    Args:
        regions: answers on the grid.
        wanted: the class inside the borders: the true one, or the goal of a targeted attack.
        what: what that class is, for the title.
        axes: what u and v are; both are RMSD in units of 1/255.
        title: above the panel, in place of the usual one.
    """
    figure = canvas(5.8, 4.4)
    panel = figure.subplots()
    reach = 255 * regions.reach
    handles = []
    for number, (model, answers) in enumerate(regions.classes.items()):
        colour, style = COLOURS[number % 6], _STYLES[number % len(_STYLES)]
        inside = (answers == wanted).double().numpy()
        line = np.linspace(-reach, reach, len(answers))
        empty = not inside.any()
        if not (empty or inside.all()):
            panel.contour(
                line,
                line,
                inside,
                levels=[0.5],
                colors=[colour],
                linestyles=[style],
                linewidths=1.8,
            )
        name = f"{model} (nowhere)" if empty else f"{model} (everywhere)" if inside.all() else model
        handles.append(Line2D([], [], color=colour, linestyle=style, label=name))
    panel.plot(0, 0, marker="+", color="black", markersize=9)
    handles.append(
        Line2D([], [], color="black", marker="+", linestyle="", markersize=9, label="the image")
    )
    panel.set_xlim(-reach, reach)
    panel.set_ylim(-reach, reach)
    panel.set_aspect("equal")
    panel.set_xlabel(f"{axes[0]} (RMSD, 1/255)")
    panel.set_ylabel(f"{axes[1]} (RMSD, 1/255)")
    panel.set_title(title or f"border of the region of the {what}", fontsize=10)
    figure.legend(handles=handles, loc="outside right center", fontsize=8, frameon=False)
    return figure
