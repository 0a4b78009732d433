"""Table 3: standard and worst-case robust accuracy beside other methods.

No defense, adversarial training and TRADES under PGD; the adversarial transformation under the BPDA
attacks, white-box transfer and transfer from another model. Xiao & Zheng 2020, section 5.
"""

from __future__ import annotations

from robusttrain.commands.entry import main
from robusttrain.evaluation.paired import compared, in_points
from robusttrain.evaluation.report import Figure
from robusttrain.reporting import bars
from studies.black_box import crafted_on
from studies.study import Study, percent

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
        "no defense": scale.f_a("standard"),
        "adversarial training": scale.f_a("adversarial"),
        "TRADES": scale.f_a("trades"),
    }
    points = {f"{name}, pgd": scale.attacked(model, "pgd") for name, model in others.items()}
    ours, independent = scale.ours(), scale.f_a("standard", 1)
    bpda = {"ours, eot": scale.attacked(ours, *scale.eot)}
    bpda |= {f"ours, {name}": scale.attacked(ours, name) for name in BPDA[scale.name]}
    other = {"ours, wt": scale.attacked(ours, "wt")}
    other |= {
        f"ours, transfer {name}": scale.attacked(ours, name, crafted_on(independent))
        for name in TRANSFERRED[scale.name]
    }
    results = study.run(points | bpda | other)

    rows, values, worst = [], {}, {}
    groups = {f"{name}": [f"{name}, pgd"] for name in others}
    groups |= {"ours, BPDA": [*bpda], "ours, all": [*bpda, *other]}
    for name, labels in groups.items():
        worst[name] = study.worst_cases(*labels)
        values[name] = float(worst[name].mean())
        attacks = ", ".join(label.partition(", ")[2] for label in labels)
        paper = [percent(figure) for figure in PAPER[name]]
        rows.append((name, results[labels[0]].clean, Figure.over(worst[name]), attacks, *paper))
    columns = ("method", "clean", "worst case", "attacks", "paper: clean", "paper: worst case")
    beside = compared(worst["adversarial training"], worst["ours, all"], "", random=True)
    notes = (
        (
            "The worst case is per image over the attacks of its row, chosen and scored on"
            " different draws of g."
        ),
        (
            "All attacks on ours beside PGD on adversarial training, images paired:"
            f" {in_points(beside.mean, beside.low, beside.high)}."
        ),
    )
    study.write(columns, rows, bars(values, "worst case"), notes)


if __name__ == "__main__":
    main(run)
