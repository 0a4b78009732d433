"""Which recipe for a budget: robust training, with and without a defense, at equal gradient
evaluations.

All have the same number of gradient evaluations, those of f_b inside g counted, and as many images
as that buys. Clean accuracy, PGD-20 and the worst case over a suite; robust accuracy epoch by
epoch; and, on few images seen often, robust overfitting (Rice et al. 2020) with adversarial
training and with TRADES + AWP.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from statistics import median
from typing import Any

from matplotlib.figure import Figure
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import Tensor

from robusttrain.commands.entry import main
from robusttrain.config.suites import suite, suite_settings
from robusttrain.evaluation.paired import around
from robusttrain.evaluation.plan import EvaluationPlan
from robusttrain.reporting.canvas import canvas
from robusttrain.running import training
from robusttrain.running.jobs import Call, Job
from studies.beyond_the_paper import surrogate
from studies.scales import EPSILON, Scale, Settings, nodes_of, training_plan, typed
from studies.study import Study


@dataclass(frozen=True)
class Sizes:
    """What a scale does.

    Args:
        budget: gradient evaluations of a training, f_b's inside g counted.
        epochs: parts of it, after each of which robust accuracy is looked at.
        recipes: names in `RECIPES`.
        suite: of attacks that look for the worst case.
        images: test images that are attacked.
        few: for robust overfitting: options that leave few training images, how many, epochs and
            budget.
        training: options of every training.
        attacks: shorter attacks, "ATTACK.KEY" to value, for those of the suite that apply.
    """

    budget: int
    epochs: int
    recipes: tuple[str, ...]
    suite: str
    images: int
    few: tuple[Settings, int, int, int]
    training: Settings = field(default_factory=dict)
    attacks: Settings = field(default_factory=dict)


@dataclass(frozen=True)
class Recipe:
    """One row.

    Args:
        options: of train.py.
        inner: where the inner attack's options are, None without one of several steps.
        steps: of the inner attack, None for the scale's.
        g: steps N of the g in front, 0 without.
        reference: what its preset or paper reports.
    """

    options: Settings
    inner: str | None = None
    steps: int | None = None
    g: int = 0
    reference: str = "not at hand"


PLAIN, WRAPPED = "training.objective.attack", "training.objective.objective.attack"
#: Steps of the g of both rows with g: 13, as in the paper, would leave a fourteenth of the images.
STEPS_OF_G = 3
#: The references of RobustBench are for radius 8/255.
WIDE = "RobustBench, WideResNet-"
AWP = {"training": "trades-awp", "training.objective.warmup": 2}
RECIPES = {
    "none": Recipe({"training": "standard"}, reference="clean 92.9 % (xiao-2020)"),
    "adversarial training": Recipe(
        {"training": "adversarial"}, PLAIN, reference="PGD-10 52.7 %, AutoAttack 48.7 %"
    ),
    "TRADES": Recipe({"training": "trades"}, PLAIN, reference="PGD-10 53.5 %, AutoAttack 49.5 %"),
    "MART": Recipe(
        {"training": "mart"},
        PLAIN,
        reference=f"{WIDE}28-10, more images: clean 87.5 %, AutoAttack 56.3 %",
    ),
    "TRADES + AWP": Recipe(AWP, WRAPPED, reference="PGD-10 55.9 %, AutoAttack 51.6 %"),
    "fast": Recipe(
        {"training": "fast"}, reference="RobustBench, ResNet-18: clean 83.3 %, AutoAttack 43.2 %"
    ),
    "free": Recipe(
        {"training": "free", "training.objective.replays": 4},
        reference=f"{WIDE}34-10: clean 86.1 %, AutoAttack 41.5 %",
    ),
    "randomization + adversarial training": Recipe(
        {"training": "adversarial", "defense": "randomization"}, PLAIN
    ),
    "g": Recipe(
        {"training": "standard"}, g=STEPS_OF_G, reference="clean 82.9 %, worst 73.4 % (xiao-2020)"
    ),
    "g + adversarial training": Recipe({"training": "adversarial-through-g"}, PLAIN, 2, STEPS_OF_G),
}
SETTINGS = {
    "smoke": Sizes(
        2_000,
        2,
        ("adversarial training", "g + adversarial training"),
        "quick",
        8,
        ({"data.validation": 0.9}, 140, 2, 1_000),
        {"robust.images": 8, "trainer.limit_val_batches": 2},
    ),
    "small": Sizes(
        200_000,
        8,
        tuple(RECIPES),
        "worst-case",
        200,
        (
            {
                **{"data.validation": 0.99, "data.batch_size": 32, "trainer.limit_val_batches": 16},
                **{"robust.every": 5, "robust.images": 256},
            },
            500,
            150,
            450_000,
        ),
        # Small batches: the budget buys few steps.
        {
            "trainer.precision": "bf16-mixed",
            "data.batch_size": 64,
            "trainer.limit_val_batches": 8,
        },
        {
            "eot.gradient.draws": 5,
            "average-logits.gradient.draws": 5,
            "automatic-differentiation.steps": 20,
            "bpda-softsign.steps": 20,
            "bpda-tanh.steps": 20,
            "own-surrogate.gradient.draws": 3,
            "finite-differences.gradient.directions": 10,
            "wt-mean-start.draws": 50,
            "autoattack.attacks.2.targets": 3,  # FAB-T's, of 9
            "autoattack.attacks.3.queries": 1000,  # Square's, of 5,000
            **{
                f"autoattack-rand{around}.attacks.{apgd}.{key}": value
                for around in ("", "-bpda-i")
                for apgd in (0, 1)
                for key, value in {"steps": 25, "gradient.draws": 5}.items()  # of 100 and 20
            },
            "random-noise.queries": 100,
            "square.queries": 200,
            "genattack.steps": 20,
            "hopskipjump.steps": 1,
            "hopskipjump.votes": 3,
        },
    ),
    "paper": Sizes(
        50 * 45_000 * 11,
        50,
        tuple(RECIPES),
        "worst-case",
        1_000,
        ({}, 45_000, 200, 200 * 45_000 * 11),
    ),
}
#: What the others are held against.
YARDSTICK = "adversarial training"
#: Recipes that are trained on few images, too.
OVERFITTING = (YARDSTICK, "TRADES + AWP")
SPEED = "pace/images_per_second"
#: What curves are drawn of, and what tells the time.
TAGS = ("robust/worst_case", "inner/train_accuracy", "val/accuracy", SPEED)


@dataclass(frozen=True)
class Trained:
    """A recipe's model, the images of all epochs together, and its gradient evaluations."""

    model: Job
    seen: int
    spent: int


def trained(scale: Scale, recipe: Recipe, name: str, few: bool = False) -> Trained:
    """The training of a recipe within the budget."""
    settings = SETTINGS[scale.name]
    fewer, images, epochs, budget = (
        settings.few if few else ({}, scale.train_images, settings.epochs, settings.budget)
    )
    options = {**scale.data, **scale.model, **recipe.options}
    if recipe.inner:
        options |= inner(recipe.steps or scale.inner_steps, recipe.inner)
    options |= {**scale.more, **settings.training, "robust.every": 1, **fewer}
    bare = training.Job(replace(training_plan(*typed(options)), defense=None))
    objective, batch = bare.training().objective, bare.data.batch_size
    if recipe.g:
        options |= scale.g(steps=recipe.g)
    costs = [objective.at(epoch).cost() for epoch in range(epochs)]
    # Every pass goes through g: N gradient evaluations of f_b more.
    each = sum(cost.inner + cost.training for cost in costs) * (1 + recipe.g) * batch
    batches = max(1, min(round(budget / each), images * objective.replays // batch))
    label = f"recipe-{name}" + ("-few" if few else "")
    model = scale.job(label, {**options, "trainer.limit_train_batches": batches}, epochs)
    return Trained(model, epochs * batches * batch, each * batches)


def inner(steps: int, where: str) -> dict[str, Any]:
    """Options of an inner attack; fewer steps than the presets' ten are longer, to reach as far."""
    sizes = {f"{where}.steps": steps, f"{where}.step_size": round(0.06 / steps, 6)}
    return {} if steps == 10 else sizes


def curves(model: str, logs: Path) -> dict[str, Any]:
    """What training logged after each epoch: validation accuracy, robust and clean, and that on its
    own images.

    Args:
        model: name of its run.
        logs: folder of all runs.
    """
    logged: dict[str, list[float]] = {tag: [] for tag in TAGS}
    # A training that was stopped and went on has logs in several folders.
    versions = Path(logs).glob(f"{model}/version_*")
    for folder in sorted(versions, key=lambda path: int(path.name.removeprefix("version_"))):
        board = EventAccumulator(str(folder)).Reload()
        for tag in set(TAGS) & set(board.Tags()["scalars"]):
            logged[tag] += [event.value for event in board.Scalars(tag)]
    return logged


def strong(scale: Scale, recipe: Recipe, target: Job) -> EvaluationPlan:
    """The target under the suite: shorter attacks, and the models that the attacker has."""
    settings = SETTINGS[scale.name]
    changes = dict(settings.attacks)
    if settings.suite == "worst-case":
        needed = ["transfer-standard", "transfer-adversarial", "transfer-ensemble"]
        if recipe.g:  # those of other studies: stand-ins for the g of all steps, and its f_a
            needed += ["reparameterization", "small-n-transfer", "own-surrogate"]
        for name in needed:
            changes |= {f"{name}.{key}": to for key, to in surrogate(name, scale).items()}
    changes |= scale.attack
    said = [(key, json.dumps(to)) for key, to in changes.items()]
    return replace(
        scale.attacked(target, "pgd", images=settings.images),
        attacks=nodes_of(suite(settings.suite), said, EPSILON),
        suites=[settings.suite],
        survivors=suite_settings(settings.suite).get("survivors", False),
    )


def run(arguments: list[str]) -> None:
    """Run the study."""
    study = Study("recipes", __doc__, arguments)
    scale, settings = study.scale, SETTINGS[study.scale.name]

    def watched(model: Job) -> Call:
        return Call(curves, {"model": model.name}, {"logs": str(study.logs)})

    models: dict[str, Trained] = {}
    points: dict[str, EvaluationPlan | Call] = {}
    through_g = ("bpda-i", {"steps": 20, "step_size": 0.0031})
    for name in settings.recipes:
        recipe = RECIPES[name]
        models[name] = trained(scale, recipe, name)
        model = models[name].model
        pgd = through_g if recipe.g else ("pgd", {})
        points |= {
            f"{name}, curves": watched(model),
            f"{name}, PGD-20": scale.attacked(model, *pgd, images=settings.images),
            f"{name}, worst": strong(scale, recipe, model),
        }
    few = {
        name: trained(scale, RECIPES[name], name, few=True)
        for name in OVERFITTING
        if name in settings.recipes
    }
    points |= {f"{name}, few images": watched(each.model) for name, each in few.items()}
    results = study.run(points)

    rows = []
    yardstick = study.worst_cases(f"{YARDSTICK}, worst")
    for name in settings.recipes:
        seen, worst = models[name].seen, f"{name}, worst"
        rows.append(
            (
                name,
                f"{seen:,}",
                f"{models[name].spent:,}",
                f"{seen / median(results[f'{name}, curves'][SPEED]):.0f}",
                results[worst].clean,
                results[f"{name}, PGD-20"].only.robust,
                results[worst].worst_case,
                "-" if name == YARDSTICK else beside(study.worst_cases(worst), yardstick),
                RECIPES[name].reference,
            )
        )
    spent, few_spent = ({name: e.spent for name, e in each.items()} for each in (models, few))
    columns = (
        *(
            "recipe",
            "images seen",
            "gradient evaluations",
            "seconds",
            "clean",
            "PGD-20",
            "worst case",
        ),
        *(f"worst case beside {YARDSTICK}", "the paper, or MAIR (resnet18), or as named"),
    )
    setting = (
        f"{settings.images} test images, {scale.draws} draws for an image's score of a random"
        f" defense; suite {settings.suite}. Training: {settings.budget:,} gradient evaluations"
        f" each, f_b's inside g counted; inner attacks of {scale.inner_steps} steps, through g"
        f" {RECIPES['g + adversarial training'].steps}; g of {STEPS_OF_G} steps, f_b:"
        f" {scale.weights or 'trained here'}"
    )
    notes = (
        (
            "Seconds: images seen over the median of the epochs' images a second, without"
            " validation; a training that was interrupted, or paused for a while, counts no more"
            " than another. PGD-20 behind g goes through it by identity backward (20 steps of"
            " 0.0031). The last but one column: difference of worst cases in points, with its 95 %"
            " interval, image by image: all are attacked on the same ones."
        ),
        "Robust overfitting: {:,} training images, {} epochs, {:,} gradient evaluations at most;"
        " accuracy on validation images under the check, and on its own images under the inner"
        " attack.".format(*settings.few[1:]),
    )
    study.write(columns, rows, picture(results, spent, few_spent), notes, setting)


def beside(ours: Tensor, theirs: Tensor) -> str:
    """Difference of two worst cases (n,) on the same images in points, with the 95 % interval of
    its mean.
    """
    difference = ours - theirs
    low, high = around(difference)
    return f"{100 * float(difference.mean()):+.1f} ({100 * low:+.1f} to {100 * high:+.1f})"


def picture(results: Mapping[str, Any], spent: Mapping[str, int], few: Mapping[str, int]) -> Figure:
    """Robust validation accuracy against the budget, robust overfitting, and the table as bars."""
    figure = canvas(18, 6)
    growth, overfitting, bars = figure.subplots(1, 3)

    def line(
        axes: Any, name: str, point: Mapping[str, Any], tag: str, total: int, **style: Any
    ) -> None:
        values = point[tag]
        axes.plot(
            [total * (1 + number) / len(values) for number in range(len(values))],
            values,
            label=name,
            **style,
        )

    for name, total in spent.items():
        line(growth, name, results[f"{name}, curves"], "robust/worst_case", total, marker=".")
    growth.set_title("robust validation accuracy while training")
    for number, (name, total) in enumerate(few.items()):
        point = results[f"{name}, few images"]
        line(
            overfitting,
            f"{name}: validation",
            point,
            "robust/worst_case",
            total,
            color=f"C{number}",
        )
        line(
            overfitting,
            f"{name}: trained on",
            point,
            "inner/train_accuracy",
            total,
            color=f"C{number}",
            ls="--",
        )
    overfitting.set_title("robust overfitting on few images")
    for axes in (growth, overfitting):
        axes.set_xlabel("gradient evaluations")
        axes.set_ylabel("accuracy under attack")
        axes.set_ylim(0, 1.3 * axes.get_ylim()[1])  # room for the legend
        axes.legend(fontsize="x-small", loc="upper left", ncols=2)
        axes.grid(alpha=0.3)
    names = list(spent)[::-1]
    worst = [results[f"{name}, worst"] for name in names]
    bars.barh(names, [point.clean.accuracy for point in worst], color="lightgrey", label="clean")
    bars.barh(
        names,
        [results[f"{name}, PGD-20"].worst_case.accuracy for name in names],
        label="PGD-20",
    )
    bars.barh(names, [point.worst_case.accuracy for point in worst], label="worst case")
    bars.set_xlim(0, 1)
    bars.set_title(f"test images, Linf {EPSILON:g}")
    bars.legend(fontsize="x-small")
    return figure


if __name__ == "__main__":
    main(run)
