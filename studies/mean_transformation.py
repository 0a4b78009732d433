"""Figure 4: pictures of x and of E[g(x)] for several f_b.

For f_b untrained, after more and more epochs of standard training, and adversarially trained: the
difference of x and E[g(x)], and its largest pixel. Xiao & Zheng 2020, section 3.4.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from robusttrain.commands.entry import main
from robusttrain.reporting.canvas import canvas
from robusttrain.running.jobs import Call
from studies.study import NOT_AVAILABLE, Study
from studies.transformation import mean_distance


@dataclass(frozen=True)
class Settings:
    """Epochs of standard training, images, and draws that estimate E[g(x)]."""

    epochs: tuple[int, ...]
    images: int
    draws: int


SETTINGS = {
    "smoke": Settings((0,), 4, 4),
    "small": Settings((0, 1, 5), 3, 1_000),
    "paper": Settings((0, 1, 2, 5, 10, 15, 20), 3, 5_000),
}
#: Distances that the text of the paper's figure gives for its one image, without saying for which
#: f_b.
LEGIBLE = "0.137, 0.141 and 0.263 under three of its pictures"


def run(arguments: list[str]) -> None:
    """Run the study."""
    study = Study("mean_transformation", __doc__, arguments)
    scale, settings = study.scale, SETTINGS[study.scale.name]
    models: dict[str, str | None] = {
        f"{epochs} epoch{'s' * (epochs > 1)}" if epochs else "untrained": (
            scale.f_b(epochs).weights
        )
        for epochs in settings.epochs
    }
    models["adversarially trained"] = None
    size = {"count": settings.images, "draws": settings.draws}
    results = study.run(
        {
            name: Call(mean_distance, {**scale.transformation(f_b), **size})
            for name, f_b in models.items()
        }
    )

    shown = range(min(3, settings.images))
    columns = ("f_b", *(f"distance, image {number + 1}" for number in shown), "mean", "paper")
    rows = []
    for name, point in results.items():
        distances = [f"{point['distances'][number]:.3f}" for number in shown]
        rows.append((name, *distances, f"{point['mean_distance']:.3f}", NOT_AVAILABLE))
    notes = (
        (
            f"The paper's figure prints {LEGIBLE}. E[g(x)] is a mean of {settings.draws:,} draws"
            " (paper: 5,000). No pixel of g as the text defines it can be farther from x than"
            " Delta 0.2. Differences are scaled to the full range of grey, each by itself."
        ),
    )
    study.write(columns, rows, pictures(results), notes)


def pictures(results: Mapping[str, Mapping[str, Any]]) -> Figure:
    """One row for each image: x, the differences, and E[g(x)] of the last f_b."""
    last = list(results.values())[-1]["pictures"]
    count = len(last["x"])
    figure = canvas(1.6 * (len(results) + 2), 1.9 * count)
    panels = figure.subplots(count, len(results) + 2, squeeze=False)
    for row in range(count):
        x = np.array(last["x"][row]) / 1000
        shown = [("x", x)]
        for name, point in results.items():
            difference = np.array(point["pictures"]["mean"][row]) / 1000 - x
            scale = 2 * max(float(np.abs(difference).max()), 1e-6)
            shown.append((f"{name}\n{point['distances'][row]:.3f}", 0.5 + difference / scale))
        shown.append(("E[g(x)], last f_b", np.array(last["mean"][row]) / 1000))
        for axes, (title, pixels) in zip(panels[row], shown, strict=True):
            axes.imshow(pixels.clip(0, 1).transpose(1, 2, 0).repeat(3 // len(pixels), axis=2))
            axes.set_title(title, fontsize=7)
            axes.axis("off")
    return figure


if __name__ == "__main__":
    main(run)
