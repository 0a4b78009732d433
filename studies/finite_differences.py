"""Figure 3, right: derivatives of g by finite differences (equation 4).

One frozen draw of g, h from 1e-7 to 1e-1: the estimate of dg_i/dx_j for i = j, for a neighbour and
for a pixel far away. Xiao & Zheng 2020, section 3.3.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.figure import Figure

from robusttrain.commands.entry import main
from robusttrain.reporting import canvas
from robusttrain.running.jobs import Call
from studies.study import NOT_AVAILABLE, Study
from studies.transformation import finite_differences

#: Images, and values of h for each.
SETTINGS = {"smoke": (1, 7), "small": (3, 61), "paper": (5, 121)}


def run(arguments: list[str]) -> None:
    """Run the study."""
    study = Study("finite_differences", __doc__, arguments)
    scale = study.scale
    images, count = SETTINGS[scale.name]
    # In float32 at every scale: what is studied are differences of 1e-7.
    g = scale.transformation(precision="float32")
    results = study.run(
        {
            f"image {image}": Call(finite_differences, {**g, "count": count, "image": image})
            for image in range(images)
        }
    )

    columns = (
        "h",
        *(f"{place}: zero / median / largest" for place in ("same", "neighbour", "far")),
        "paper",
    )
    rows = []
    for exponent in range(-7, -1):
        spreads = [
            _spread(results.values(), place, exponent) for place in ("same", "neighbour", "far")
        ]
        claim = "vanishes" if exponent < -5 else "fluctuates severely"
        rows.append(
            (
                f"1e{exponent} to 1e{exponent + 1}",
                *spreads,
                f"{claim} (values: {NOT_AVAILABLE})",
            )
        )
    notes = (
        (
            f"Over {images} images, one frozen draw of g each: the share of estimates that are"
            " exactly zero, the median and the largest of their absolute values. Pixel j is the"
            " middle of the image; i is j itself, its right neighbour, or the middle of the upper"
            " half. The paper does not say which i and j it shows."
        ),
    )
    study.write(columns, rows, _drawn(results["image 0"]), notes)


def _spread(points: Sequence[Mapping[str, Any]] | Any, place: str, exponent: int) -> str:
    """Estimates for h in [10^exponent, 10^(exponent + 1)), in three numbers."""
    sizes = sorted(
        abs(estimate)
        for point in points
        for h, estimate in zip(point["h"], point["estimates"][place], strict=True)
        # logspace may miss a power of ten by a hair.
        if 10**exponent * 0.999 <= h < 10 ** (exponent + 1) * 0.999
    )
    if not sizes:
        return "-"
    return f"{sizes.count(0) / len(sizes):.0%} / {sizes[len(sizes) // 2]:.3g} / {sizes[-1]:.3g}"


def _drawn(point: Mapping[str, Any]) -> Figure:
    figure = canvas(7, 4)
    axes = figure.subplots()
    for place, estimates in point["estimates"].items():
        axes.plot(point["h"], estimates, marker=".", label=f"i: {place}")
    axes.set_xscale("log")
    axes.set_yscale("symlog", linthresh=1e-2)
    axes.set_xlabel("h")
    axes.set_ylabel("estimate of dg_i/dx_j")
    axes.grid(alpha=0.3)
    axes.legend(fontsize="small")
    return figure


if __name__ == "__main__":
    main(run)
