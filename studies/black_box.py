"""Table 2: robustness under black-box attacks.

No defense, adversarial training and the adversarial transformation under transfer from an
independently trained standard model, HopSkipJump and GenAttack. Xiao & Zheng 2020, section 4.2.
"""

from __future__ import annotations

from dataclasses import dataclass

from robusttrain.config.command_line import main
from studies import report
from studies.parts import Point, Training
from studies.study import Study


@dataclass(frozen=True)
class Settings:
    """Attacks that are transferred; attacks by queries, their images, and options that make them
    shorter.
    """

    transferred: tuple[str, ...]
    queries: tuple[str, ...]
    images: int
    budget: dict[str, tuple[str, ...]]


QUERIES = ("hopskipjump", "genattack")
SETTINGS = {
    "smoke": Settings(("mifgsm",), (), 16, {}),
    "small": Settings(
        ("pgd", "mifgsm", "mdifgsm"),
        QUERIES,
        20,
        {
            "hopskipjump": ("--attack.steps", "4", "--attack.votes", "3"),
            "genattack": ("--attack.steps", "100"),
        },
    ),
    "paper": Settings(("pgd", "mifgsm", "mdifgsm"), QUERIES, 1_000, {}),
}
#: Clean, transfer, HopSkipJump, GenAttack.
PAPER = {
    "no defense": (0.929, 0.013, 0.036, 0.058),
    "adversarial training": (0.817, 0.775, 0.721, 0.784),
    "ours": (0.829, 0.781, 0.820, 0.819),
}


def transfer(attack: str, source: Training) -> tuple[str | Training, ...]:
    """Options of evaluate.py for an attack that is crafted on another model."""
    surrogate = (
        "--attack.source.class_path",
        "robusttrain.attacks.Checkpoint",
        "--attack.source.path",
        source,
    )
    return ("--attack", attack, *surrogate)


def run(arguments: list[str]) -> None:
    """Run the study."""
    study = Study("black_box", __doc__, arguments)
    scale, settings = study.scale, SETTINGS[study.scale.name]
    models = {
        "no defense": scale.standard(),
        "adversarial training": scale.adversarial(),
        "ours": scale.ours(),
    }
    independent = scale.standard(seed=1)
    transferred_points = [
        Point(f"{name}, {attack}", scale.attacked(model, *transfer(attack, independent)))
        for name, model in models.items()
        for attack in settings.transferred
    ]
    query_points = [
        Point(
            f"{name}, {attack}",
            scale.attacked(
                model, "--attack", attack, *settings.budget.get(attack, ()), images=settings.images
            ),
        )
        for name, model in models.items()
        for attack in settings.queries
    ]
    found = study.run([*transferred_points, *query_points])

    rows = []
    values: dict[str, float] = {}
    for name in models:
        transferred = [found[f"{name}, {attack}"] for attack in settings.transferred]
        worst = study.worst_case(transferred)
        values |= {
            f"{name}, clean": transferred[0]["clean"]["accuracy"],
            f"{name}, transfer": worst,
        }
        told = ["not run at this scale"] * len(QUERIES)
        for column, attack in enumerate(settings.queries):
            point = found.get(f"{name}, {attack}")
            told[column] = report.robust(point)
            if point:
                told[column] += (  # fewer images than the others'
                    f" of {report.percent(point['clean']['accuracy'])}"
                )
                values[f"{name}, {attack}"] = point["attacks"][attack]["robust_accuracy"]
        paper = " / ".join(report.percent(figure) for figure in PAPER[name])
        rows.append((name, report.clean(transferred[0]), report.percent(worst), *told, paper))
    columns = (
        "model",
        "clean",
        "transfer",
        "HopSkipJump",
        "GenAttack",
        "paper: clean / transfer / HSJ / GA",
    )
    asked = {
        attack: found[f"ours, {attack}"]["attacks"][attack]["queries_per_image"]
        for attack in settings.queries
    }
    budgets = ", ".join(f"{attack} {queries:,.0f}" for attack, queries in asked.items())
    notes = (
        (
            f"Transfer is the worst case per image of {', '.join(settings.transferred)}, crafted on"
            f" a standard model of seed 1; attacks by queries on {settings.images:,} images"
            f" (queries for an image: {budgets or 'none'}), beside what is right of these. The"
            " paper does not say which attack it transfers."
        ),
    )
    report.write(study, found, columns, rows, report.bars(values, study.title), notes)


if __name__ == "__main__":
    main(run)
