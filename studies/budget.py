"""Robustness per hour: what a stated time of training leaves under AutoAttack, and what adds to it.

One run of ``--training budget`` for each time, nothing chosen on test images: its last weights are
attacked. Then the recipe with one ingredient changed, each at the same number of passes through the
network. Run it alone on the machine: other work makes a planned epoch longer, and the run with it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from matplotlib.figure import Figure

from robusttrain.commands.entry import main
from robusttrain.core.processor import processor
from robusttrain.evaluation.plan import EvaluationPlan
from robusttrain.reporting.canvas import canvas
from robusttrain.running.jobs import Call, Job
from robusttrain.storage.files import write_whole
from studies.recipes import beside, curves
from studies.scales import Scale, Settings
from studies.study import Study

#: Radius of the threat: the one of RobustBench and of N-FGSM's paper.
EPSILON = 8 / 255
OBJECTIVE = "training.objective"
STRONG: tuple[str, Settings] = ("autoattack", {})
#: Near AutoAttack at a fifth of its time: what compares ingredients.
NEAR: tuple[str, Settings] = ("autoattack", {"attacks": ["apgd-ce", "apgd-t"]})


@dataclass(frozen=True)
class Sizes:
    """What a scale does.

    Args:
        minutes: of the runs.
        passes: forward and backward, of each image, for an ingredient.
        images: test images that are attacked, of the runs and of the ingredients.
        attacks: of the runs, and of the ingredients: presets and what is changed of them.
        changes: options of every training.
        ingredients: names in `INGREDIENTS`, the recipe first; none for all.
    """

    minutes: tuple[float, ...]
    passes: int
    images: tuple[int, int]
    attacks: tuple[tuple[str, Settings], tuple[str, Settings]] = (STRONG, NEAR)
    changes: Settings = field(default_factory=dict)
    ingredients: tuple[str, ...] = ()


SETTINGS = {
    "smoke": Sizes(
        (0.01,),
        2,
        (8, 8),
        (("pgd", {}),) * 2,
        {"robust.images": 8, "data.validation": 0.1},
        ("the recipe", "PGD of 2 steps in its place", "with AWP"),
    ),
    "digits": Sizes((0.5, 2), 40, (400, 400), (("autoattack", {}),) * 2, {"data.validation": 0.1}),
    "small": Sizes(
        (20, 60, 180),
        8,
        (1000, 500),
        changes={
            **{"model": "resnet_strided", "robust.images": 500},
            **{"trainer.limit_train_batches": None, "trainer.precision": "bf16-mixed"},
        },
    ),
    "paper": Sizes((20, 60, 180), 60, (1000, 1000), changes={"robust.images": 500}),
}


@dataclass(frozen=True)
class Ingredient:
    """A change of the recipe.

    Args:
        options: that are other than the recipe's.
        passes: forward and backward of a step, for each image, in passes of the recipe's network;
            the recipe has 2.
        source: where it comes from, and what is reported there.
    """

    options: Settings
    passes: int = 2
    source: str = "-"


def node(name: str, **arguments: Any) -> dict[str, Any]:
    """A part of robusttrain and its arguments."""
    return {"class_path": f"robusttrain.{name}", "init_args": arguments}


THREAT = node("attacks.Linf", epsilon=EPSILON)
SINGLE = node("training.NFGSM", threat=THREAT)


def steps(count: int, size: float) -> Settings:
    """Adversarial training by PGD of so many steps, each of ``size`` epsilon."""
    size_of = {"step_size": None, "relative_step_size": size}
    attack = {"steps": count, **size_of, "threat": THREAT}
    return {
        OBJECTIVE: node(
            "training.Adversarial",
            attack=node("attacks.ProjectedGradient", **attack),
            batch_norm="train",
        )
    }


RECIPE = "the recipe"
INGREDIENTS = {
    RECIPE: Ingredient({}, source="N-FGSM (de Jorge et al. 2022), one cycle, averaged weights"),
    "FGSM from a random start in its place": Ingredient(steps(1, 1.25), 2, "Wong et al. 2020"),
    "PGD of 2 steps in its place": Ingredient(steps(2, 0.625), 3, "Madry et al. 2018"),
    "with GradAlign": Ingredient(
        {OBJECTIVE: node("training.GradAlign", threat=THREAT, objective=SINGLE)},
        4,
        "Andriushchenko & Flammarion 2020",
    ),
    "without averaged weights": Ingredient({"ema": 0.0}, source="Rebuffi et al. 2021"),
    "with CutMix": Ingredient({"training.mixing": "cutmix"}, source="Rebuffi et al. 2021"),
    "with label smoothing of 0.1": Ingredient(
        {OBJECTIVE: node("training.NFGSM", threat=THREAT, label_smoothing=0.1)},
        source="Szegedy et al. 2016",
    ),
    "with AWP": Ingredient(
        {OBJECTIVE: node("training.AWP", objective=SINGLE, gamma=0.005)}, 3, "Wu et al. 2020"
    ),
    "without the strided stem": Ingredient({"model": "resnet_small"}, 4, "He et al. 2016"),
}


def run(arguments: list[str]) -> None:
    """Run the study."""
    study = Study("budget", __doc__, arguments, "digits")
    scale, sizes = study.scale, SETTINGS[study.scale.name]
    runs = {minutes: timed(scale, sizes, minutes) for minutes in sizes.minutes}
    changed = {name: at_equal_cost(scale, sizes, name) for name in sizes.ingredients or INGREDIENTS}
    points: dict[str, EvaluationPlan | Call] = {}
    labels = {**{f"{minutes:g} minutes": job for minutes, job in runs.items()}, **changed}
    for name, job in labels.items():
        attack, values = sizes.attacks[name in changed]
        images = sizes.images[name in changed]
        points[name] = scale.attacked(job, attack, values, images=images, epsilon=EPSILON, draws=1)
        points[f"{name}, curves"] = Call(curves, {"model": job.name}, {"logs": str(study.logs)})
    results = study.run(points)

    rows, recipe = [], study.worst_cases(RECIPE)
    for name in labels:
        found = results[name]
        epochs = len(results[f"{name}, curves"]["robust/worst_case"])
        here = name in changed
        rows.append(
            (
                name,
                epochs,
                found.clean,
                found.worst_case,
                beside(study.worst_cases(name), recipe) if here and name != RECIPE else "-",
                INGREDIENTS[name].source if here else "not at hand for this network",
            )
        )
    columns = (
        *("run", "epochs", "clean", "under attack", "beside the recipe, points"),
        "from, or the paper's figure",
    )
    setting = (
        f"Runs of stated minutes under {sizes.attacks[0][0]} on {sizes.images[0]:,} test images,"
        f" ingredients under {_named(*sizes.attacks[1])} on {sizes.images[1]:,}. Recipe: preset"
        " budget at the same radius, last weights, seed 0; ingredients at"
        f" {sizes.passes} passes of each image"
    )
    notes = (
        "The last weights are attacked; nothing is chosen on test images. Ingredients: the"
        " difference to the recipe in points, with its 95 % interval, image by image, for one seed:"
        " noise between seeds is not in it.",
    )
    figures = [_row(minutes, results[f"{minutes:g} minutes"], study) for minutes in runs]
    text = "[\n" + ",\n".join(map(json.dumps, figures)) + "\n]\n"
    write_whole(study.output / "budget.json", text.encode())
    study.write(columns, rows, picture(results, runs), notes, setting, EPSILON)


def timed(scale: Scale, sizes: Sizes, minutes: float) -> Job:
    """The training that takes so long."""
    return scale.job(f"budget-{minutes:g}-minutes", _options(scale, sizes, minutes), 1)


def at_equal_cost(scale: Scale, sizes: Sizes, name: str) -> Job:
    """The training with an ingredient changed."""
    ingredient = INGREDIENTS[name]
    epochs = max(1, round(sizes.passes / ingredient.passes))
    options = {**_options(scale, sizes, None), **ingredient.options}
    return scale.job(f"budget-{name}", options, epochs)


def _options(scale: Scale, sizes: Sizes, minutes: float | None) -> dict[str, Any]:
    own = {"training": "budget", "training.minutes": minutes, OBJECTIVE: SINGLE, "robust.every": 1}
    return {**scale.data, **scale.model, **scale.more, **own, **sizes.changes}


def _named(attack: str, values: Settings) -> str:
    return " and ".join(values["attacks"]) if "attacks" in values else attack


def _row(minutes: float, found: Any, study: Study) -> dict[str, Any]:
    """Of ``budget.json``."""
    return {
        "minutes": minutes,
        "clean": round(100 * found.clean.accuracy, 1),
        "autoattack": round(100 * found.worst_case.accuracy, 1),
        "images": found.json["images"],
        "processor": {**processor(torch.device("cpu")), "threads": torch.get_num_threads()},
        "command": study.command,
    }


def picture(results: Mapping[str, Any], runs: Mapping[float, Job]) -> Figure:
    """Accuracy under PGD on validation images over the minutes of each run, and what is left under
    attack of the test images.
    """
    figure = canvas(7, 5)
    axes = figure.subplots()
    for minutes in runs:
        values = results[f"{minutes:g} minutes, curves"]["robust/worst_case"]
        times = [minutes * (1 + epoch) / len(values) for epoch in range(len(values))]
        (line,) = axes.plot(times, values, marker=".", label=f"{minutes:g} minutes, PGD-10")
        left = results[f"{minutes:g} minutes"].worst_case.accuracy
        axes.plot([minutes], [left], "*", color=line.get_color(), markersize=12)
    axes.set_xscale("log")
    longest = max(runs)
    ticks = [
        minutes for minutes in (0.01, 0.1, 0.5, 1, 2, 5, 10, 20, 60, 180) if minutes <= longest
    ]
    axes.set_xticks(ticks, [f"{minutes:g}" for minutes in ticks], minor=False)
    axes.minorticks_off()
    axes.set_xlabel("minutes (stars: test images under AutoAttack)")
    axes.set_ylabel("robust accuracy")
    axes.set_ylim(bottom=0)
    axes.grid(alpha=0.3)
    axes.legend()
    return figure


if __name__ == "__main__":
    main(run)
