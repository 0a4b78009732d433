"""Figure 6: clean accuracy, BPDA-I and white-box transfer as the radius Delta of g grows.

A model of its own for each Delta, random start on, BPDA-I with EOT (500 draws in the paper). Xiao &
Zheng 2020, sections 4.1 and 4.2.
"""

from __future__ import annotations

from robusttrain.commands.entry import main
from robusttrain.reporting import lines
from studies.study import NOT_AVAILABLE, Study

RADII = {
    "smoke": (0.1, 0.2),
    "small": (0.05, 0.1, 0.2, 0.3),
    "paper": (0.02, 0.05, 0.1, 0.15, 0.2, 0.25, 0.3),
}


def run(arguments: list[str]) -> None:
    """Run the study."""
    study = Study("radius", __doc__, arguments)
    scale = study.scale
    models = {radius: scale.ours(radius) for radius in RADII[scale.name]}
    points = {}
    for radius, model in models.items():
        points[f"eot {radius:g}"] = scale.attacked(model, *scale.eot)
        points[f"wt {radius:g}"] = scale.attacked(model, "wt")
    results = study.run(points)

    rows = []
    series: dict[str, list[tuple[float, float]]] = {"clean": [], "BPDA-I with EOT": [], "WT": []}
    for radius in models:
        eot, wt = results[f"eot {radius:g}"], results[f"wt {radius:g}"]
        at_best = radius == 0.2
        paper = ("82.9 % (table 3)", "80.5 % (table 1)") if at_best else (NOT_AVAILABLE,) * 2
        rows.append(
            (
                radius,
                eot.clean,
                eot.only.robust,
                wt.only.robust,
                *paper,
                NOT_AVAILABLE,
            )
        )
        series["clean"].append((radius, eot.clean.accuracy))
        series["BPDA-I with EOT"].append((radius, (eot.only.robust.accuracy or 0)))
        series["WT"].append((radius, (wt.only.robust.accuracy or 0)))
    columns = (
        "Delta",
        "clean",
        "BPDA-I with EOT",
        "WT",
        "paper: clean",
        "paper: BPDA-I",
        "paper: WT",
    )
    notes = (
        (
            "The paper says that robust accuracy grows with Delta, clean accuracy falls, and 0.2 is"
            " best."
        ),
    )
    study.write(columns, rows, lines(series, "Delta"), notes)


if __name__ == "__main__":
    main(run)
