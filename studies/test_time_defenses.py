"""What defenses at test time are worth: each in front of two base models, against the base itself.

Eight defenses that need no training of their own (but for g's f_b) stand before a model of standard
and one of adversarial training. Their papers' protocol is transfer: the attack on the classifier
alone. The adaptive suite goes through, around and without each defense, and attacks the base model
at the same budget (Croce et al. 2022). What the attacker knows of the draw is a column of its own.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from matplotlib.figure import Figure as Picture
from torch import Tensor

from robusttrain.commands.entry import main
from robusttrain.config.evaluation import read_plan
from robusttrain.evaluation.paired import compared, in_points
from robusttrain.evaluation.plan import EvaluationPlan
from robusttrain.evaluation.records import CLEAN, Records
from robusttrain.evaluation.report import Figure, Results
from studies import report
from studies.plans import Job
from studies.scales import EPSILON, Scale, Settings, typed
from studies.study import Study

#: By name: the options of a defense. Layers and crops fit images of 32 pixels.
DEFENSES: Mapping[str, Settings] = {
    "JPEG (Guo 2018)": {"defense": "jpeg"},
    "bit depth (Xu 2018)": {"defense": "bit-depth"},
    "median (Xu 2018)": {"defense": "median"},
    "total variation (Guo 2018)": {"defense": "total-variation"},
    "crops (Guo 2018)": {"defense": "crop-rescale", "defense.draws": 10},
    "random resizing (Xie 2018)": {"defense": "randomization"},
    "vote over resizing (Xie 2018)": {"defense": "vote", "defense.draws": 10},
    "g (Xiao 2020)": {},
}
#: Those that show that the study runs: with a twin, without randomness, with everything.
SMOKE = ("JPEG (Guo 2018)", "median (Xu 2018)", "g (Xiao 2020)")
#: What each scale asks of the suite, by attack.
EFFORT: Mapping[str, Settings] = {
    "smoke": {
        **{f"{name}.steps": 2 for name in ("wt", "apgd-ce", "apgd-margin", "eot", "bpda-twin")},
        **{f"{name}.steps": 2 for name in ("bpda-i", "bpda-i-margin", "bpda-eot")},
        **{f"{name}.gradient.draws": 2 for name in ("eot", "bpda-i-margin", "bpda-eot")},
        "square-quick.queries": 24,
        "square-quick.votes": 2,
    },
    "digits": {"eot.gradient.draws": 10, "square-quick.votes": 4},
    "small": {"eot.gradient.draws": 10, "square-quick.votes": 4},
    "paper": {},
}
#: Radius of the threat: twice the paper's on digits, which are easier than photographs.
RADIUS = {"digits": 0.062}
SUITES = {"paper": "test-time"}


def point(scale: Scale, base: Job, defense: Settings) -> EvaluationPlan:
    """A base model's weights behind a defense, under the suite."""
    radius = RADIUS.get(scale.name, EPSILON)
    options = {
        **scale.data,
        **scale.model,
        "weights": base.weights,
        **defense,
        "suite": SUITES.get(scale.name, "test-time-quick"),
        **{f"attack.{key}": value for key, value in EFFORT[scale.name].items()},
        "epsilon": radius,
        "images": scale.images,
        "draws": scale.draws,
        "audit": False,
    }
    return read_plan(typed(options))


def transfer(records: Records) -> Tensor:
    """(n,): each image's score under the attack on the classifier alone, if it hurts more than no
    attack.
    """
    return Records({name: records.of(name) for name in (CLEAN, "wt")}).worst


def row(base: str, defense: str, results: Results, records: Records) -> dict[str, Any]:
    """The figures of a point."""
    content = results.json
    bare, random = content["bare_classifier"], content["randomness"]
    added, clean = bare["added"]["worst_case"], bare["added"]["clean"]
    return {
        "base model": base,
        "defense": defense,
        "clean, with the defense": results.clean,
        "its paper's protocol: transfer": Figure.over(transfer(records)),
        "adaptive": results.worst_case,
        "k tries": (
            f"{Figure.of(random['tries']['worst_case'])}, k = {random['tries']['tries']}"
            if random
            else ""
        ),
        "known draw": Figure.of(random["known"]["worst_case"]) if random else "",
        "base model, same budget": Figure.of(bare["worst_case"]),
        "the defense adds": in_points(added["difference"], *added["ci95"]),
        "adds to clean": in_points(clean["difference"], None, None),
    }


def run(arguments: list[str]) -> None:
    """Run the study."""
    study = Study("test_time_defenses", __doc__, arguments)
    scale = study.scale
    bases = {"standard": scale.standard(), "adversarial": scale.adversarial()}
    names = SMOKE if scale.name == "smoke" else DEFENSES
    defenses = {name: DEFENSES[name] or scale.g() for name in names}
    points = {
        f"{base}: {name}": point(scale, job, defense)
        for base, job in bases.items()
        for name, defense in defenses.items()
    }
    results = study.run(points)
    rows, differences = [], {}
    for base in bases:
        for name in defenses:
            label = f"{base}: {name}"
            records = results[label].records
            rows.append(row(base, name, results[label], records))
            folder = study.points[label].folder
            alone = Records.read(folder / "bare_classifier-verdicts.safetensors")
            random = bool(results[label].json["random"])
            differences[label] = {
                "transfer": compared(alone.worst, transfer(records), label, random),
                "adaptive": compared(alone.worst, records.worst, label, random),
            }
    columns = list(rows[0])
    table = [[str(cell) for cell in each.values()] for each in rows]
    notes = (
        "'The defense adds' is the paired difference, by image, between the adaptive worst case and"
        " that of the base model at the same budget of gradient evaluations, with its 95 %"
        " interval. Transfer is the attack on the classifier alone, as the defenses' own papers"
        " have it.",
    )
    head = f"{scale.images} test images, {scale.draws} draws for an image's score."
    radius = RADIUS.get(scale.name, EPSILON)
    report.write(study, columns, table, drawn(differences), notes, head, radius)


def drawn(differences: Mapping[str, Mapping[str, Any]]) -> Picture:
    """What each protocol says that a defense adds to its base model, with intervals."""

    figure, axes = report.panel(1.5 + 0.35 * len(differences))
    for place, (kind, marker, colour) in enumerate(
        (("transfer", "o", "tab:blue"), ("adaptive", "s", "tab:orange"))
    ):
        shown = [each[kind] for each in differences.values()]
        heights = [-number - 0.15 * (2 * place - 1) for number in range(len(shown))]
        means = [100 * each.mean for each in shown]
        ends = [
            [100 * (each.mean - each.low) for each in shown],
            [100 * (each.high - each.mean) for each in shown],
        ]
        name = "its paper's protocol" if kind == "transfer" else "adaptive suite"
        axes.errorbar(means, heights, xerr=ends, fmt=marker, color=colour, label=name, capsize=2)
    axes.axvline(0, color="grey", linewidth=1)
    axes.set_yticks([-number for number in range(len(differences))], [*differences])
    axes.set_xlabel("points that the defense adds to its base model under attack (95 %)")
    axes.legend(fontsize="small")
    axes.grid(axis="x", alpha=0.3)
    return figure


if __name__ == "__main__":
    main(run)
