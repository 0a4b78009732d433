"""Table 3: standard and worst-case robust accuracy beside other methods.

No defense, adversarial training and TRADES under PGD; the adversarial transformation under the BPDA
attacks, white-box transfer and transfer from another model. Xiao & Zheng 2020, section 5.
"""

from __future__ import annotations

from robusttrain.config.command_line import main
from studies import report
from studies.black_box import transfer
from studies.parts import Point
from studies.study import Study

BPDA = {
    "smoke": ("bpda-i",),
    "small": ("bpda-i", "bpda-i-margin", "bpda-softsign", "bpda-tanh"),
    "paper": ("bpda-i", "bpda-i-momentum", "bpda-i-margin", "bpda-softsign", "bpda-tanh"),
}
TRANSFERRED = {
    "smoke": ("mifgsm",),
    "small": ("mifgsm", "mdifgsm"),
    "paper": ("pgd", "mifgsm", "mdifgsm"),
}
#: Clean and worst case.
PAPER = {
    "no defense": (0.929, 0.0),
    "adversarial training": (0.817, 0.427),
    "TRADES": (0.804, 0.446),
    "ours, BPDA": (0.829, 0.802),
    "ours, all": (0.829, 0.734),
}


def run(arguments: list[str]) -> None:
    """Run the study."""
    study = Study("comparison", __doc__, arguments)
    scale = study.scale
    others = {
        "no defense": scale.standard(),
        "adversarial training": scale.adversarial(),
        "TRADES": scale.trades(),
    }
    points = [
        Point(f"{name}, pgd", scale.attacked(model, "--attack", "pgd"))
        for name, model in others.items()
    ]
    ours = scale.ours()
    bpda = [
        Point("ours, eot", scale.attacked(ours, *scale.eot)),
        *(
            Point(f"ours, {name}", scale.attacked(ours, "--attack", name))
            for name in BPDA[scale.name]
        ),
    ]
    other = [
        Point("ours, wt", scale.attacked(ours, "--attack", "wt")),
        *(
            Point(
                f"ours, transfer {name}",
                scale.attacked(ours, *transfer(name, scale.standard(seed=1))),
            )
            for name in TRANSFERRED[scale.name]
        ),
    ]
    found = study.run([*points, *bpda, *other])

    rows, values = [], {}
    groups = {f"{name}": [f"{name}, pgd"] for name in others}
    groups["ours, BPDA"] = [point.label for point in bpda]
    groups["ours, all"] = [point.label for point in (*bpda, *other)]
    for name, labels in groups.items():
        measured = [found[label] for label in labels if label in found]
        worst = study.worst_case(measured)
        values[name] = worst
        attacks = ", ".join(
            label.partition(", ")[2] + ("" if label in found else " (missing)") for label in labels
        )
        paper = [report.percent(figure) for figure in PAPER[name]]
        rows.append((name, report.clean(measured[0]), report.percent(worst), attacks, *paper))
    columns = ("method", "clean", "worst case", "attacks", "paper: clean", "paper: worst case")
    notes = (
        (
            "The worst case is per image over the attacks of its row, chosen and scored on"
            " different draws of g."
        ),
    )
    report.write(study, found, columns, rows, report.bars(values, "worst case"), notes)


if __name__ == "__main__":
    main(run)
