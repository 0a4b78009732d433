"""What each ingredient adds to the recipe for a stated time: one changed at a time.

All with the same number of passes of each image through the network, on one seed, under the two
attacks of AutoAttack that decide nearly everything, for a fifth of its time.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from math import ceil
from typing import Any, Literal

from matplotlib.figure import Figure

from robusttrain.commands.entry import main
from robusttrain.reporting.canvas import canvas
from robusttrain.running.jobs import Call, Job
from studies.budget import ABOUT, EPSILON, OBJECTIVE, SINGLE, SMALL, THREAT, node, recipe
from studies.recipes import beside, curves
from studies.scales import Scale, Settings
from studies.study import Study


@dataclass(frozen=True)
class Sizes:
    """What a scale does.

    Args:
        passes: forward and backward, of each image.
        images: test images that are attacked.
        attacks: of AutoAttack, or what is attacked with in its place.
        changes: options of every training.
        ingredients: names in `INGREDIENTS`, the recipe first; none for all.
        precision: in which attacks differentiate; verdicts are float32 passes.
    """

    passes: int
    images: int
    attacks: tuple[str, ...] = ("apgd-ce", "apgd-t")
    changes: Settings = field(default_factory=dict)
    ingredients: tuple[str, ...] = ()
    precision: Literal["auto", "bfloat16"] = "auto"


SETTINGS = {
    "smoke": Sizes(
        2,
        8,
        (),
        {"robust.images": 8, "data.validation": 0.1},
        ("the recipe", "PGD of 2 steps in its place", "with AWP"),
    ),
    "digits": Sizes(40, 297, changes={"data.validation": 0.1}),
    # For a third of the time; on the released f_b no verdict differs (docs/processors.md).
    "small": Sizes(8, 500, changes=SMALL, precision="bfloat16"),
    "paper": Sizes(60, 1000, changes={"robust.images": 500}),
}


@dataclass(frozen=True)
class Ingredient:
    """A change of the recipe.

    Args:
        options: that are other than the recipe's.
        passes: forward and backward of a step, for each image, in passes of the recipe's network;
            the recipe has 2.
        source: where it comes from, and what is reported there.
        late: the option that says for how many epochs it waits, so that the first half of all
            passes are those of the recipe; None where it is there from the start.
    """

    options: Settings
    passes: float = 2
    source: str = "-"
    late: str | None = None


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
        5,
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
    "with AWP late": Ingredient(
        {OBJECTIVE: node("training.AWP", objective=SINGLE, gamma=0.005)},
        *(3, "Wu et al. 2020, after a warm-up"),
        late=f"{OBJECTIVE}.warmup",
    ),
    # Of 0.70 M parameters instead of 0.95 M; a pass takes 2.13 times the operations.
    "resnet_small in its network's place, narrower and without a strided stem": Ingredient(
        {"model": "resnet_small"}, 4.25, "He et al. 2016"
    ),
}


def run(arguments: list[str]) -> None:
    """Run the study."""
    study = Study("ingredients", __doc__, arguments, "digits")
    scale, sizes = study.scale, SETTINGS[study.scale.name]
    if scale.name == "small":
        scale.about = ABOUT
    names = sizes.ingredients or tuple(INGREDIENTS)
    # Without any named, a short attack: a check that everything runs.
    attack = ("autoattack", {"attacks": [*sizes.attacks]}) if sizes.attacks else ("pgd", {})
    points: dict[str, Any] = {}
    for name in names:
        job = at_equal_cost(scale, sizes, name)
        plan = scale.attacked(job, *attack, images=sizes.images, epsilon=EPSILON, draws=1)
        points[name] = replace(plan, precision=sizes.precision)
        points[f"{name}, curves"] = Call(curves, {"model": job.name}, {"logs": str(study.logs)})
    results = study.run(points)

    rows, yardstick = [], study.worst_cases(RECIPE)
    for name in names:
        found = results[name]
        epochs = f"{length(sizes, INGREDIENTS[name])[0]:.3g}"
        difference = "-" if name == RECIPE else beside(study.worst_cases(name), yardstick)
        rows.append(
            (name, epochs, found.clean, found.worst_case, difference, INGREDIENTS[name].source)
        )
    columns = (
        *("recipe", "epochs", "clean", "under attack", "beside the recipe, points"),
        "the paper it comes from",
    )
    setting = (
        f"{sizes.images:,} test images under {' and '.join(sizes.attacks) or 'pgd'} (precision"
        f" {sizes.precision}); last weights,"
        f" {sizes.passes} passes of each image, seed 0"
    )
    notes = (
        "The difference to the recipe is in points, image by image, with a 95 % interval over"
        " images; noise between seeds is not in it.",
    )
    study.write(columns, rows, picture(results, names), notes, setting, EPSILON)


def length(sizes: Sizes, ingredient: Ingredient) -> tuple[float, int]:
    """Epochs of a training, not whole if its last are shorter ones, and those that it waits for.

    All epochs are equally long, so that these are a share of ``ceil(epochs)`` of them.
    """
    if not ingredient.late:
        return sizes.passes / ingredient.passes, 0
    before = INGREDIENTS[RECIPE].passes
    waits = max(1, round(sizes.passes / 2 / before))
    after = max(1, ceil((sizes.passes - before * waits) / ingredient.passes))
    share = sizes.passes / (before * waits + ingredient.passes * after)
    return share * (waits + after), waits


def at_equal_cost(scale: Scale, sizes: Sizes, name: str) -> Job:
    """The training with an ingredient changed."""
    ingredient = INGREDIENTS[name]
    whole, waits = length(sizes, ingredient)
    epochs = ceil(whole)
    options = {**recipe(scale, sizes.changes, None), **ingredient.options}
    if ingredient.late:
        options[ingredient.late] = waits
    if whole < epochs:
        options["trainer.limit_train_batches"] = round(whole / epochs, 4)
    return scale.job(f"budget-{name}", options, epochs)


def picture(results: Mapping[str, Any], names: tuple[str, ...]) -> Figure:
    """Clean accuracy and what is left under attack."""
    figure = canvas(7, 1.5 + 0.4 * len(names))
    axes = figure.subplots()
    shown = names[::-1]
    clean = [results[name].clean.accuracy for name in shown]
    left = [results[name].worst_case.accuracy for name in shown]
    axes.barh(shown, clean, color="lightgrey", label="clean")
    axes.barh(shown, left, label="under attack")
    axes.set_xlabel("accuracy on test images")
    axes.legend(fontsize="x-small")
    return figure


if __name__ == "__main__":
    main(run)
