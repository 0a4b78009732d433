"""Figure 5: BPDA through the unrolled steps of g, as their number N grows.

f_a trained and tested behind g of N steps without random start; sign replaced by soft sign or tanh
in the backward pass, PGD with 50 steps of 0.002. Xiao & Zheng 2020, section 4.1.
"""

from __future__ import annotations

from robusttrain.commands.entry import main
from robusttrain.reporting import lines
from studies.study import NOT_AVAILABLE, Study

STEPS = {"smoke": (1, 2), "small": (1, 3, 6, 13), "paper": (1, 2, 3, 4, 5, 6, 7, 9, 11, 13, 15)}
ATTACKS = ("bpda-softsign", "bpda-tanh")


def run(arguments: list[str]) -> None:
    """Run the study."""
    study = Study("bpda_steps", __doc__, arguments)
    scale, steps = study.scale, STEPS[study.scale.name]
    models = {number: scale.ours(steps=number, random_start=False) for number in steps}
    results = study.run(
        {
            f"{attack} N {number}": scale.attacked(model, attack)
            for number, model in models.items()
            for attack in ATTACKS
        }
    )

    rows = []
    series: dict[str, list[tuple[float, float]]] = {
        "clean": [],
        **{attack: [] for attack in ATTACKS},
    }
    for number in steps:
        points = {attack: results[f"{attack} N {number}"] for attack in ATTACKS}
        for attack, point in points.items():
            series[attack].append((number, (point.only.robust.accuracy or 0)))
        clean = points[ATTACKS[0]].clean
        series["clean"].append((number, clean.accuracy))
        paper = "falls to the attack" if number <= 2 else "robust" if number > 5 else "not said"
        accuracies = [point.only.robust for point in points.values()]
        rows.append((number, clean, *accuracies, f"{paper} (values: {NOT_AVAILABLE})"))
    columns = ("N", "clean", "BPDA, soft sign", "BPDA, tanh", "paper")
    notes = ("g has no random start here, so it is deterministic and one draw says everything.",)
    study.write(columns, rows, lines(series, "steps N of g"), notes)


if __name__ == "__main__":
    main(run)
