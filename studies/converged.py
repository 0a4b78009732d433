"""Ten recipes of robust training once their curves are flat, over seeds.

The recipes of `studies.recipes`, each trained for as long as further training adds little. That is
checked: every model is trained once more for half as long, and the table says what doubling has
added. Clean accuracy and the worst case are means over seeds; intervals are over images and seeds.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from statistics import mean, median, stdev
from typing import Any

import torch
from matplotlib.figure import Figure as Picture
from scipy.stats import t as student

from robusttrain.commands.entry import main
from robusttrain.config.suites import suite, suite_settings
from robusttrain.core.errors import UserError
from robusttrain.evaluation.plan import EvaluationPlan
from robusttrain.reporting.canvas import canvas
from robusttrain.running.jobs import Call, Job
from studies.budget import ABOUT, SMALL
from studies.does_g_add import END, SHORTER, Beside, drawn
from studies.recipes import RECIPES as SHORT
from studies.recipes import SPEED, WRAPPED, YARDSTICK, curves
from studies.scales import Scale, Settings, before_transfer, nodes_of
from studies.study import Study, counted, percent

LONG = {"training": "trades-awp"}
#: Points of accuracy that doubling a training may add, and its curve still counts as flat.
FLAT = 0.01
#: One recipe differs from that of short budgets: AWP's warm-up is the preset's.
RECIPES = {**SHORT, "TRADES + AWP": replace(SHORT["TRADES + AWP"], options=LONG)}
#: Where the threat of a recipe stands that has no inner attack of several steps.
THREATS = {"fast": "training.objective.attack.threat", "free": "training.objective.threat"}


@dataclass(frozen=True)
class Sizes:
    """What a scale does.

    Args:
        epochs: of a training, replays of a batch counted; half of them for the check.
        longer: recipes with more epochs than that, by how many times.
        seeds: of every recipe.
        images: test images.
        epsilon: radius of the threat.
        recipes: names in `RECIPES`.
        suite: of attacks.
        attacks: what is changed of them, "ATTACK.KEY" to value.
        options: of every training.
        randomization: options of the layers, where the preset's are too large for the images.
        warmup: epochs without AWP, None for the preset's.
        scale: values that are other than the scale's.
    """

    epochs: int
    seeds: int
    images: int
    epsilon: float = 0.031
    longer: Mapping[str, int] = field(default_factory=dict)
    recipes: tuple[str, ...] = tuple(RECIPES)
    suite: str = "test-time-autoattack"
    attacks: Settings = field(default_factory=dict)
    options: Settings = field(default_factory=dict)
    randomization: Settings = field(default_factory=dict)
    warmup: int | None = None
    scale: Mapping[str, Any] = field(default_factory=dict)

    def of(self, name: str) -> int:
        """Epochs of a recipe."""
        return self.epochs * self.longer.get(name, 1)

    def lengths(self, name: str) -> tuple[int, int]:
        """Epochs of a recipe, and of its check."""
        return self.of(name), max(1, self.of(name) // 2)


ATTACKS = {**SHORTER, "eot.gradient.draws": 10, "square-quick.votes": 4}
SETTINGS = {
    "smoke": Sizes(
        2,
        1,
        8,
        recipes=(YARDSTICK, "g"),
        suite="quick",
        options={"robust.images": 8, "trainer.limit_train_batches": 2},
    ),
    "digits": Sizes(
        60,
        10,
        297,
        0.062,
        # What was far from flat after 60.
        {"none": 2, "free": 4, "g": 4, "g + adversarial training": 4},
        attacks=ATTACKS,
        options={"robust.images": 256, "data.validation": 0.2},
        # The paper's ratio of sizes, 299 to 331, at 16 pixels.
        randomization={"defense.low": 16, "defense.canvas": 18},
        scale={"inner_steps": 5},
    ),
    "small": Sizes(
        16,
        1,
        200,
        attacks=ATTACKS,
        options={**SMALL, "model.widths": [32, 64, 128], "model.blocks": 1},
        warmup=4,
        scale={"about": ABOUT.replace("0.95", "0.31"), "inner_steps": 3, "f_b_width": 32},
    ),
    "paper": Sizes(100, 3, 1000, options={"robust.images": 1000}),
}


def trained(scale: Scale, sizes: Sizes, name: str, seed: int, epochs: int) -> Job:
    """The training of a recipe."""
    recipe = RECIPES[name]
    where = f"{recipe.inner}.threat" if recipe.inner else THREATS.get(name)
    options = {**scale.data, **scale.model, **recipe.options}
    if where:
        options[f"{where}.epsilon"] = sizes.epsilon
    if recipe.inner:
        steps = recipe.steps or scale.inner_steps
        options[f"{recipe.inner}.steps"] = steps
        options[f"{recipe.inner}.step_size"] = round(2 * sizes.epsilon / steps, 6)
    if recipe.g:
        options |= scale.g(steps=recipe.g)
    if options.get("defense") == "randomization":
        options |= sizes.randomization
    if recipe.inner == WRAPPED and sizes.warmup is not None:
        options["training.objective.warmup"] = sizes.warmup
    replays = recipe.options.get("training.objective.replays", 1)
    epochs = max(1, epochs // replays)
    watched = {"robust.every": epochs, "robust.epsilon": sizes.epsilon}
    options |= {**scale.more, **sizes.options, **watched, "seed": seed}
    return scale.job(f"converged-{name}-{epochs}-epochs-seed-{seed}", options, epochs)


def attacked(scale: Scale, sizes: Sizes, target: Job) -> EvaluationPlan:
    """A model's last weights under the whole suite."""
    said = [(key, json.dumps(to)) for key, to in {**sizes.attacks, **scale.attack}.items()]
    return replace(
        scale.attacked(target, "pgd", images=sizes.images, epsilon=sizes.epsilon),
        attacks=nodes_of(before_transfer(suite(sizes.suite)), said, sizes.epsilon),
        suites=[sizes.suite],
        survivors=suite_settings(sizes.suite).get("survivors", False),
    )


def run(arguments: list[str]) -> None:
    """Run the study."""
    study = Study("converged", __doc__, arguments, "digits", "seeds", "longer", "recipes")
    scale, sizes = study.scale, SETTINGS[study.scale.name]
    epochs = sizes.epochs * study.longer
    names = chosen(study.recipes, sizes.recipes)
    sizes = replace(sizes, seeds=study.seeds or sizes.seeds, epochs=epochs, recipes=names)
    vars(scale).update(sizes.scale)
    # For f_b, too: no image that is validated on was trained on.
    split = {key: to for key, to in sizes.options.items() if key.startswith("data.")}
    scale.data = {**scale.data, **split}
    points: dict[str, EvaluationPlan | Call] = {}
    seeds = range(sizes.seeds)
    for seed in seeds:  # all recipes of one before the next
        for name in sizes.recipes:
            for n in sizes.lengths(name):
                job, logs = trained(scale, sizes, name, seed, n), {"logs": str(study.logs)}
                points[curve(name, seed, n)] = Call(curves, {"model": job.name}, logs)
                if n == sizes.of(name):
                    points[f"{name}, seed {seed}"] = attacked(scale, sizes, job)
    results = study.run(points)

    shown, rows = {}, []
    worst = {name: stack(study, name, sizes.seeds) for name in sizes.recipes}
    logged = {
        name: [[results[curve(name, seed, n)] for n in sizes.lengths(name)] for seed in seeds]
        for name in sizes.recipes
    }
    speeds = {name: [median(long[SPEED]) for long, _ in each] for name, each in logged.items()}
    for name in sizes.recipes:
        each = [f"{name}, seed {seed}" for seed in seeds]
        clean = mean(results[label].clean.accuracy for label in each)
        added = [end(long) - end(half) for long, half in logged[name]]
        shown[name] = (clean, Beside.of(worst[name], shares=True))
        rows.append(
            (
                name,
                sizes.of(name),
                pace(speeds[name], speeds[YARDSTICK]),
                percent(clean),
                shown[name][1].share,
                percent(mean(tried(results[label].json) for label in each)),
                "-" if name == YARDSTICK else Beside.of(worst[name] - worst[YARDSTICK]),
                doubled(added),
                "yes" if abs(mean(added)) <= FLAT else "no",
                RECIPES[name].reference,
            )
        )
    columns = (
        *(
            "recipe",
            "epochs",
            "time, beside the yardstick",
            "clean",
            "worst case",
            "of a few tries",
            "beside the yardstick",
        ),
        *("doubling added", "flat", "the paper, or MAIR (resnet18), or as named"),
    )
    averaged = ", mean over seeds with its 95 % interval" if sizes.seeds > 1 else ""
    notes = (
        f"The yardstick is {YARDSTICK}. Worst case and differences in points, images paired,"
        f" {drawn(sizes.seeds)}. Time: that of an epoch, median over epochs, validation left out;"
        " the least and the greatest over seeds, each beside the yardstick of its own.",
        "Doubling added: PGD on validation images after the last epoch, less that of runs of half"
        " as many epochs (free: of whole replays in them) with a schedule of their own"
        f"{averaged}; flat: at most {100 * FLAT:g} point.",
        f"Of a few tries: the worst case where a random model falls as soon as one of {scale.draws}"
        " draws does, which an attacker who may ask again needs; the same where nothing is random.",
    )
    setting = (
        f"{sizes.images} test images, {counted(sizes.seeds)}, suite {sizes.suite}, last weights;"
        f" inner attacks of {scale.inner_steps} steps; a batch's replays are epochs, too"
    )
    study.write(columns, rows, picture(shown), notes, setting, sizes.epsilon)


def chosen(asked: Sequence[str] | None, there: Sequence[str]) -> tuple[str, ...]:
    """Recipes to compare, in the order of the table: those asked for and the yardstick.

    Raises:
        UserError: one that the scale does not have.
    """
    for name in asked or ():
        if name not in there:
            names = ", ".join(f'"{each}"' for each in there)
            raise UserError(f"--recipes {name}: no such recipe here; give some of {names}")
    return tuple(name for name in there if not asked or name in (*asked, YARDSTICK))


def curve(name: str, seed: int, epochs: int) -> str:
    """Label of what a training logged: twice as long a study finds its checks by it."""
    return f"{name}, seed {seed}, curve of {counted(epochs, 'epoch')}"


def stack(study: Study, name: str, seeds: int) -> torch.Tensor:
    """(seeds, n): worst cases of each image."""
    return torch.stack([study.worst_cases(f"{name}, seed {seed}") for seed in range(seeds)])


def end(curve: Mapping[str, Sequence[float]]) -> float:
    """Robust validation accuracy after the last epoch, clean accuracy where nobody attacked."""
    return (curve["robust/worst_case"] or curve["val/accuracy"] or [float("nan")])[-1]


def tried(found: Mapping[str, Any]) -> float:
    """The worst case of an attacker with as many tries as draws score, from a results.json."""
    known = found["randomness"]
    worst = known["tries"]["worst_case"] if known else found["worst_case"]
    return float(worst["robust_accuracy"])


def pace(own: Sequence[float], yardstick: Sequence[float]) -> str:
    """Time of an image in training, in that of the yardstick of the same seed: the least and the
    greatest over seeds, which may have run beside unlike other work.

    Args:
        own: images a second of a recipe, one figure a seed.
        yardstick: the same of the yardstick.
    """
    each = [other / speed for speed, other in zip(own, yardstick, strict=True)]
    ends = [f"{end:.2f}" for end in (min(each), max(each))]
    return " to ".join(dict.fromkeys(ends))


def doubled(added: Sequence[float]) -> str:
    """What twice the epochs have added, in points, with a 95 % interval over seeds."""
    if len(added) < 2:
        return f"{100 * added[0]:+.1f}"
    if stdev(added) < 1e-6:  # seeds that agree by chance show no spread
        return f"{100 * mean(added):+.1f} in each"
    margin = float(student.ppf(END, len(added) - 1)) * stdev(added) / len(added) ** 0.5
    low, high = mean(added) - margin, mean(added) + margin
    return f"{100 * mean(added):+.1f} ({100 * low:+.1f} to {100 * high:+.1f})"


def picture(shown: Mapping[str, tuple[float, Beside]]) -> Picture:
    """Clean accuracy and worst case of each recipe, with intervals."""
    figure = canvas(7, 1.5 + 0.4 * len(shown))
    axes = figure.subplots()
    names = [*shown][::-1]
    axes.barh(names, [shown[name][0] for name in names], color="lightgrey", label="clean")
    worst = [shown[name][1] for name in names]
    axes.barh(
        names,
        [each.mean for each in worst],
        xerr=[[each.ends[side] for each in worst] for side in (0, 1)],
        capsize=2,
        label="worst case, 95 % intervals over images and seeds",
    )
    axes.set_xlim(0, 1)
    axes.legend(fontsize="x-small", loc="lower left", bbox_to_anchor=(0, 1), ncols=2)
    return figure


if __name__ == "__main__":
    main(run)
