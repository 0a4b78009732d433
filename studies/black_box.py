"""Table 2: robustness under black-box attacks.

No defense, adversarial training and the adversarial transformation under transfer from an
independently trained standard model, HopSkipJump and GenAttack. Xiao & Zheng 2020, section 4.2.
"""

from __future__ import annotations

from dataclasses import dataclass

from robusttrain.commands.entry import main
from robusttrain.evaluation.plan import Node
from robusttrain.reporting import bars
from robusttrain.running.jobs import Job
from studies.scales import Settings
from studies.study import Study, percent


@dataclass(frozen=True)
class Sizes:
    """Attacks that are transferred; attacks by queries, their images, and options that make them
    shorter.
    """

    transferred: tuple[str, ...]
    queries: tuple[str, ...]
    images: int
    budget: dict[str, Settings]


QUERIES = ("hopskipjump", "genattack")
SETTINGS = {
    "smoke": Sizes(("mifgsm",), (), 16, {}),
    "small": Sizes(
        ("pgd", "mifgsm", "mdifgsm"),
        QUERIES,
        20,
        {
            "hopskipjump": {"steps": 4, "votes": 3},
            "genattack": {"steps": 100},
        },
    ),
    "paper": Sizes(("pgd", "mifgsm", "mdifgsm"), QUERIES, 1_000, {}),
}
#: Clean, transfer, HopSkipJump, GenAttack.
PAPER = {
    "no defense": (0.929, 0.013, 0.036, 0.058),
    "adversarial training": (0.817, 0.775, 0.721, 0.784),
    "ours": (0.829, 0.781, 0.820, 0.819),
}


def crafted_on(source: Job) -> Settings:
    """What is changed of an attack to craft it on another model."""
    return {"source": checkpoint(source)}


def checkpoint(model: Job) -> Node:
    """The node of a source that is another model."""
    return {
        "class_path": "robusttrain.attacks.Checkpoint",
        "init_args": {"path": model.checkpoint},
    }


def run(arguments: list[str]) -> None:
    """Run the study."""
    study = Study("black_box", __doc__, arguments)
    scale, settings = study.scale, SETTINGS[study.scale.name]
    models = {
        "no defense": scale.f_a("standard"),
        "adversarial training": scale.f_a("adversarial"),
        "ours": scale.ours(),
    }
    independent = scale.f_a("standard", 1)
    points = {
        f"{name}, {attack}": scale.attacked(model, attack, crafted_on(independent))
        for name, model in models.items()
        for attack in settings.transferred
    }
    points |= {
        f"{name}, {attack}": scale.attacked(
            model, attack, settings.budget.get(attack), images=settings.images
        )
        for name, model in models.items()
        for attack in settings.queries
    }
    results = study.run(points)

    rows = []
    values: dict[str, float] = {}
    for name in models:
        transferred = [f"{name}, {attack}" for attack in settings.transferred]
        worst, clean = float(study.worst_cases(*transferred).mean()), results[transferred[0]].clean
        values |= {
            f"{name}, clean": clean.accuracy,
            f"{name}, transfer": worst,
        }
        by_queries = ["not run at this scale"] * len(QUERIES)
        for column, attack in enumerate(settings.queries):
            point = results[f"{name}, {attack}"]
            right = percent(point.clean.accuracy)  # of fewer images than the others
            by_queries[column] = f"{point.only.robust} of {right}"
            values[f"{name}, {attack}"] = point.only.robust.accuracy or 0
        paper = " / ".join(percent(figure) for figure in PAPER[name])
        rows.append((name, clean, percent(worst), *by_queries, paper))
    columns = (
        "model",
        "clean",
        "transfer",
        "HopSkipJump",
        "GenAttack",
        "paper: clean / transfer / HSJ / GA",
    )
    asked = {attack: results[f"ours, {attack}"].only.queries for attack in settings.queries}
    budgets = ", ".join(f"{attack} {queries:,.0f}" for attack, queries in asked.items())
    notes = (
        (
            f"Transfer is the worst case per image of {', '.join(settings.transferred)}, crafted on"
            f" a standard model of seed 1; attacks by queries on {settings.images:,} images"
            f" (queries for an image: {budgets or 'none'}), beside what is right of these. The"
            " paper does not say which attack it transfers."
        ),
    )
    study.write(columns, rows, bars(values, study.title), notes)


if __name__ == "__main__":
    main(run)
