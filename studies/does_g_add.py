"""Does g add anything to adversarial training, at equal cost of training and of inference?

Every way of training has the same number of floating point operations, those of g's f_b counted.
Validation images choose among radius, target and f_b of g; the test images are asked once. Beside
the winner: adversarial training of the same network, that of a network as costly at inference as g,
g in front of adversarial training without retraining, a vote over its draws, and noise of g's size
in its place. Differences are paired by image, over seeds.
"""

from __future__ import annotations

import bisect
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from math import sqrt
from typing import Any

import torch
from matplotlib.figure import Figure as Picture
from scipy.stats import t as student
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from robusttrain.commands.entry import main
from robusttrain.config.build import build
from robusttrain.config.suites import suite, suite_settings
from robusttrain.core.rng import Rng
from robusttrain.data import Batch
from robusttrain.evaluation.paired import Z, around
from robusttrain.evaluation.plan import EvaluationPlan, Node
from robusttrain.evaluation.records import Records
from robusttrain.models.winograd import plain_convolutions
from robusttrain.reporting.canvas import canvas
from robusttrain.running import training
from robusttrain.running.jobs import Call, Job
from robusttrain.training.plan import TrainingPlan
from studies.beyond_the_paper import surrogate
from studies.budget import ABOUT, SMALL
from studies.comparison import PAPER
from studies.recipes import curves
from studies.scales import (
    SCALES,
    Scale,
    Settings,
    before_transfer,
    nodes_of,
    training_plan,
    typed,
)
from studies.study import Study, counted, percent

#: Shares of a t distribution below the end of a 95 % interval, and for a power of 80 %.
END, POWER = 0.975, 0.8
#: Images of a count of operations, and of the measurement of g's size.
FEW, MANY = 2, 100
PLAIN = "adversarial training"


@dataclass(frozen=True)
class Sizes:
    """What a scale does.

    Args:
        epochs: of adversarial training; the others have as many operations.
        seeds: of every way.
        images: test images.
        epsilon: radius of the threat.
        suite: of attacks.
        attacks: what is changed of them, "ATTACK.KEY" to value.
        radii: of g, that are tried; in a training of one seed each.
        look: how much of a training's operations each of these has.
        draws: of a vote; 0 for no vote, which costs as much at inference as all its draws.
        voted: seeds of a vote; it takes most of the time, so it may have fewer than the rest.
        on_votes: what is changed of attacks on a vote, whose passes average draws already.
        options: of every training.
        scale: values that are other than the scale's.
    """

    epochs: int
    seeds: int
    images: int
    epsilon: float = 0.031
    suite: str = "worst-case"
    attacks: Settings = field(default_factory=dict)
    radii: tuple[float, ...] = (0.1, 0.2)
    look: float = 1
    draws: int = 10
    voted: int = 2
    on_votes: Settings = field(default_factory=dict)
    options: Settings = field(default_factory=dict)
    scale: Mapping[str, Any] = field(default_factory=dict)


#: Of AutoAttack: FAB-T's targets, of 9; Square's queries, of 5,000.
SHORTER = {"autoattack.attacks.2.targets": 3, "autoattack.attacks.3.queries": 1000}
SETTINGS = {
    "smoke": Sizes(
        1,
        1,
        8,
        suite="quick",
        radii=(0.1,),
        draws=2,
        options={"robust.images": 8},
        scale={"train_images": 256},
    ),
    "digits": Sizes(
        30,
        2,
        297,
        0.062,
        "test-time-autoattack",
        {**SHORTER, "eot.gradient.draws": 10, "square-quick.votes": 4},
        (0.06, 0.12, 0.2),
        draws=4,
        on_votes={
            "through-defense-eot.gradient.draws": 8,
            "apgd-eot.gradient.draws": 3,
            "apgd-eot-margin.gradient.draws": 3,
        },
        options={"robust.images": 256},
        # For f_b, too: no image that chooses was trained on.
        scale={"data": {**SCALES["digits"].data, "data.validation": 0.2}, "train_images": 1200},
    ),
    "small": Sizes(
        3,
        1,
        200,
        suite="test-time-autoattack",
        attacks={**SHORTER, "eot.gradient.draws": 4, "square-quick.votes": 4},
        look=0.25,
        draws=0,
        options=SMALL,
        # An f_b that costs g's steps little: an answer takes 2.3 times that of f_a alone.
        scale={"about": ABOUT, "inner_steps": 2, "f_b_width": 16, "short": {}},
    ),
    "paper": Sizes(80, 3, 1000, options={"robust.images": 1000}),
}


@dataclass(frozen=True)
class Operations:
    """Floating point operations of a plan for an image.

    Args:
        training: of a step, inner attack, weights and defense.
        inference: of an answer, defense included.
    """

    training: float
    inference: float


class Counting(TorchDispatchMode):
    """Counts floating point operations by torch's own formulas, backward passes included.

    (torch's `FlopCounterMode` hooks into modules besides, which fails under `autograd.grad`.)
    """

    total = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if (formula := flop_registry.get(func._overloadpacket)) is not None:
            self.total += formula(*args, **(kwargs or {}), out_val=out)
        return out


def operations(plan: TrainingPlan) -> Operations:
    """Count them on a few images of noise, with the network and the defense of the plan; whatever
    f_b's weights, the radius of g and the data are, they cost the same, and may not be there yet.
    """
    if plan.defense is not None and "weights" in plan.defense["init_args"]:
        values = {**plan.defense["init_args"], "weights": None, "radius": 0.1}
        plan = replace(plan, defense={**plan.defense, "init_args": values})
    key = json.dumps([plan.data, plan.model, plan.defense, plan.training], sort_keys=True)
    if key not in _counted:  # trainings of many seeds differ in nothing that counts
        _counted[key] = count(plan)
    return _counted[key]


_counted: dict[str, Operations] = {}


def count(plan: TrainingPlan) -> Operations:
    """`operations` of a plan whose defense can be built."""
    job = training.Job(plan)
    module = job.training()
    _, channels, side = job.facts
    each = torch.arange(FEW)
    noise = torch.rand(FEW, channels, side, side, generator=torch.Generator().manual_seed(0))
    batch = Batch(noise, each % job.facts.num_classes, each)
    rng = Rng.for_images(0, each)
    module.train()
    # The first step of a run checks its fast copies besides, whatever the batch. Operations are
    # those of the mathematics, not of how a processor saves some.
    for _ in range(2):
        with Counting() as spent, plain_convolutions():
            module.losses(batch, 0, 0)[0].mean().backward()
    module.eval()
    with Counting() as answering, plain_convolutions(), torch.no_grad():
        module.model(batch.images, rng)
    return Operations(spent.total / FEW, answering.total / FEW)


def size_of_g(defense: Node, data: Node) -> dict[str, Any]:
    """Root mean square of g(x) - x over pixels, on images of the validation split."""
    images = build(data, "data")
    images.prepare_data()
    images.setup("fit")
    batch = images.validation_images(MANY)
    with torch.no_grad():
        moved = build(defense, "defense")(batch.images, Rng.for_images(0, batch.indices))
    return {"rms": float((moved - batch.images).square().mean().sqrt())}


@dataclass(frozen=True)
class Way:
    """A way to be robust.

    Args:
        options: of its training.
        defense: what is put in front of it afterwards, without retraining; None: nothing.
        attacks: what is changed of them beyond `Sizes.attacks`.
        seeds: of it, if these are not all.
    """

    options: Settings
    defense: Settings | None = None
    attacks: Settings = field(default_factory=dict)
    seeds: int | None = None


def epoch(scale: Scale, plan: TrainingPlan) -> tuple[int, int]:
    """Batches of one pass over the training images, the last one left out unless it is full, and
    images of a batch.
    """
    batch = training.Job(replace(plan, defense=None)).data.batch_size
    return max(1, scale.train_images // batch), batch


def within(scale: Scale, sizes: Sizes, options: Settings, budget: float, seed: int = 0) -> Job:
    """A training of so many operations: epochs of one length, up to that of the data."""
    whole = {**scale.data, **scale.model, **options, **scale.more, **sizes.options, "seed": seed}
    plan = training_plan(*typed(whole))
    each, batch = epoch(scale, plan)
    batches = max(1, round(budget / (operations(plan).training * batch)))
    epochs = -(-batches // each)  # so that no epoch is longer than the data
    whole |= {
        "trainer.limit_train_batches": max(1, round(batches / epochs)),
        "robust.every": epochs,
        "robust.epsilon": sizes.epsilon,
    }
    return scale.job(f"g-adds-{options['training']}-seed-{seed}", whole, epochs)


def adversarial(scale: Scale, sizes: Sizes) -> dict[str, Any]:
    """Options of adversarial training."""
    attack = "training.objective.attack"
    steps = scale.inner_steps
    return {
        "training": "adversarial",
        f"{attack}.threat.epsilon": sizes.epsilon,
        f"{attack}.steps": steps,
        f"{attack}.step_size": round(2 * sizes.epsilon / steps, 6),
    }


def through(scale: Scale, sizes: Sizes, **changes: Any) -> dict[str, Any]:
    """Options of the same through g."""
    plain = adversarial(scale, sizes)
    return {**plain, "training": "adversarial-through-g", **scale.g(**changes)}


def variants(scale: Scale, sizes: Sizes) -> dict[str, dict[str, Any]]:
    """What validation images choose from."""
    standard = scale.f_b(scale.f_b_epochs).weights
    tried: dict[str, dict[str, Any]] = {}
    for radius in sizes.radii:
        for target in ("least_likely", "predicted"):
            name = f"radius {radius:g}, target {target}, f_b "
            values = {"radius": radius, "target": target}
            tried[name + "adversarial"] = through(scale, sizes, **values)
            if target == "least_likely":
                tried[name + "standard"] = through(scale, sizes, f_b=standard, **values)
    return dict([*tried.items()][:2]) if scale.name == "smoke" else tried


def as_costly(scale: Scale, sizes: Sizes, inference: float) -> dict[str, Any]:
    """Options of adversarial training of the widest network that is no costlier at inference; none
    where that is the network itself.
    """
    own = adversarial(scale, sizes)
    plain = {**scale.data, **scale.model, **own, **scale.more, **sizes.options}
    widths = training_plan(*typed(plain)).model["init_args"]["widths"]

    def wider(quarters: int) -> dict[str, Any]:
        return {"model.widths": [max(1, round(width * quarters / 4)) for width in widths]}

    def cost(quarters: int) -> float:
        return operations(training_plan(*typed({**plain, **wider(quarters)}))).inference

    # The wider, the costlier: how many of these are within the limit is found by halves.
    tried = range(5, 41)
    count = bisect.bisect_right(tried, inference, key=cost)
    return {**own, **wider(tried[count - 1])} if count else {}


def voted(g: Settings, draws: int) -> dict[str, Any]:
    """Options of a vote over draws of g."""
    if not draws:
        return {}
    inner = {
        f"defense.{key}" if key == "defense" else key.replace("defense.", "defense.defense.", 1): to
        for key, to in g.items()
    }
    return {"defense": "vote", "defense.draws": draws, **inner}


def attacked(
    scale: Scale, sizes: Sizes, target: Job, defense: Settings | None = None, **more: Any
) -> EvaluationPlan:
    """A model under the whole suite, by attackers who do not and who do know the draw; ``more`` is
    changed of attacks.
    """
    changes = {**sizes.attacks, **more}
    if sizes.suite == "worst-case":
        for name in ("transfer-standard", "transfer-adversarial", "transfer-ensemble"):
            changes |= {f"{name}.{key}": to for key, to in surrogate(name, scale).items()}
    said = [(key, str(to)) for key, to in {**changes, **scale.attack}.items()]
    plan = replace(
        scale.attacked(target, "pgd", images=sizes.images, epsilon=sizes.epsilon),
        attacks=nodes_of(before_transfer(suite(sizes.suite)), said, sizes.epsilon),
        suites=[sizes.suite],
        survivors=suite_settings(sizes.suite).get("survivors", False),
        known_draw=True,
    )
    if defense is None:
        return plan
    # Of the checkpoint, the network alone.
    node = training_plan(*typed({**scale.data, **defense})).defense
    return replace(plan, checkpoint=None, weights=target.weights, defense=node)


def run(arguments: list[str]) -> None:
    """Run the study."""
    study = Study("does_g_add", __doc__, arguments, "digits", "seeds", "votes")
    scale, sizes = study.scale, SETTINGS[study.scale.name]
    sizes = replace(sizes, seeds=study.seeds or sizes.seeds)
    if study.votes is not None:
        sizes = replace(sizes, voted=study.votes)
    vars(scale).update(sizes.scale)
    plain = adversarial(scale, sizes)
    options = {**scale.data, **scale.model, **plain, **scale.more, **sizes.options}
    yardstick = training_plan(*typed(options))
    each, batch = epoch(scale, yardstick)
    budget = sizes.epochs * each * batch * operations(yardstick).training

    tried = {
        name: within(scale, sizes, each, sizes.look * budget)
        for name, each in variants(scale, sizes).items()
    }
    looks = {
        name: Call(curves, {"model": job.name}, {"logs": str(study.logs)})
        for name, job in tried.items()
    }
    # Curves need their trainings, which no plan among the points names.
    seen = study.run(looks)
    scores = {name: (each["robust/worst_case"] or [0.0])[-1] for name, each in seen.items()}
    chosen = max(scores, key=lambda name: scores[name])
    behind = variants(scale, sizes)[chosen]
    g = {key: value for key, value in behind.items() if key.startswith("defense")}
    plan = training_plan(*typed({**scale.data, **g}))
    size = Call(size_of_g, {"defense": plan.defense, "data": plan.data})
    rms = study.run({**looks, "size of g": size})["size of g"]["rms"]

    costly = operations(training_plan(*typed({**options, **behind, **scale.more})))
    noise = {"defense": "noise", "defense.sigma": round(rms, 4)}
    voting = voted(g, sizes.draws) if sizes.voted else {}
    vote = Way(behind, voting, sizes.on_votes, min(sizes.voted, sizes.seeds))
    wider = as_costly(scale, sizes, costly.inference)
    ways = {
        PLAIN: Way(plain),
        **({"the same, as costly at inference as g": Way(wider)} if wider else {}),
        f"through g ({chosen})": Way(behind),
        **({f"the same, a vote over {sizes.draws} draws": vote} if voting else {}),
        "g before adversarial training, not retrained": Way(plain, g),
        f"through noise of g's size ({rms:.3f})": Way({**plain, **noise}),
    }
    seeds = {name: range(way.seeds or sizes.seeds) for name, way in ways.items()}
    # All ways of a seed before the next, and the dearest at the end.
    asked = [(name, seed) for seed in range(sizes.seeds) for name in ways if seed in seeds[name]]
    asked.sort(key=lambda which: ways[which[0]] is vote)
    jobs = {
        (name, seed): within(scale, sizes, ways[name].options, budget, seed) for name, seed in asked
    }
    points = {
        f"{name}, seed {seed}": attacked(
            scale, sizes, job, ways[name].defense, **ways[name].attacks
        )
        for (name, seed), job in jobs.items()
    }
    results = study.run({**looks, "size of g": size, **points})
    write(study, sizes, seeds, results, scores, chosen)


def write(
    study: Study,
    sizes: Sizes,
    ways: Mapping[str, Sequence[int]],
    results: Mapping[str, Any],
    scores: Mapping[str, float],
    chosen: str,
) -> None:
    """The table and what stands beside it; ``ways`` has the seeds of each."""
    rows, shown = [], {}
    worst = {name: stack(study, name, seeds, known=False) for name, seeds in ways.items()}
    known = {name: stack(study, name, seeds, known=True) for name, seeds in ways.items()}
    for name, seeds in ways.items():
        clean = [results[f"{name}, seed {seed}"].clean.accuracy for seed in seeds]
        unknown_points = Beside.of(worst[name] - worst[PLAIN][: len(seeds)])
        known_points = Beside.of(known[name] - known[PLAIN][: len(seeds)])
        shown[name] = unknown_points
        rows.append(
            (
                name,
                f"{100 * sum(clean) / len(clean):.1f} %",
                Beside.of(worst[name], shares=True).share,
                Beside.of(known[name], shares=True).share,
                "-" if name == PLAIN else unknown_points,
                "-" if name == PLAIN else known_points,
                "-" if name == PLAIN else f"{100 * unknown_points.detectable:.1f}",
                paper(name),
            )
        )
    columns = (
        *("way", "clean", "worst case", "worst case, draw known"),
        *("beside adversarial training, points", "the same, draw known"),
        *("found with 80 % probability, points", "the paper (table 3)"),
    )
    tried = "; ".join(f"{name}: {100 * score:.1f} %" for name, score in scores.items())
    notes = [
        f"Validation images chose {chosen!r} among: {tried}.",
        f"Worst cases and differences: mean over seeds, images paired, {drawn(sizes.seeds)}. The"
        " last but one column is the smallest difference that this many images and seeds would have"
        " shown with 80 % probability.",
    ]
    fewer = {name: seeds for name, seeds in ways.items() if len(seeds) < sizes.seeds}
    notes += [
        f"{name[0].upper()}{name[1:]}: {counted(len(seeds))}, beside the same of {PLAIN}."
        for name, seeds in fewer.items()
    ]
    setting = (
        f"{sizes.images} test images, {counted(sizes.seeds)}, suite {sizes.suite}; all at the"
        f" operations of {sizes.epochs} epochs of adversarial training with"
        f" {study.scale.inner_steps} steps, the choice among g's values at {sizes.look:g} of them"
    )
    study.write(columns, rows, picture(shown), notes, setting, sizes.epsilon)


def paper(name: str) -> str:
    """The figures of table 3 for adversarial training and for g; none of the paper's networks was
    trained adversarially behind g.
    """
    row = PLAIN if name == PLAIN else "ours, all" if name.startswith("through g") else None
    if row is None:
        return "-"
    clean, worst = PAPER[row]
    return f"{percent(clean)} clean, {percent(worst)} worst"


def stack(study: Study, name: str, seeds: Sequence[int], known: bool) -> torch.Tensor:
    """(seeds, n): worst cases of each image."""
    rows = []
    for seed in seeds:
        job = study.points[f"{name}, seed {seed}"]
        beside = job.folder / "known_draw-verdicts.safetensors"
        records = Records.read(beside) if known and beside.is_file() else job.result().records
        rows.append(records.worst)
    return torch.stack(rows)


def drawn(seeds: int) -> str:
    """What 95 % intervals of so many seeds are over."""
    return "95 % intervals over images" + (" and seeds" if seeds > 1 else ", of this one seed")


def coull(scores: torch.Tensor) -> tuple[float, float]:
    """The 95 % interval of the mean of scores (n,) in [0, 1] (after Agresti & Coull 1998): two
    images that stand and two that fall are added.
    """
    count, total, squares = len(scores) + 4, float(scores.sum()) + 2, scores.double().square().sum()
    mean = total / count
    half = Z * sqrt(((float(squares) + 2) / count - mean * mean) / count)
    return max(0.0, mean - half), min(1.0, mean + half)


@dataclass(frozen=True)
class Beside:
    """A difference over images and seeds.

    Args:
        mean: of all.
        error: its standard error, images and seeds being drawn anew.
        freedom: degrees of freedom of that error; with two seeds hardly more than one, where the
            seeds differ.
        low, high: of its 95 % interval.
    """

    mean: float
    error: float
    freedom: float
    low: float
    high: float

    @classmethod
    def of(cls, values: torch.Tensor, shares: bool = False) -> Beside:
        """Of (seeds, n) differences in [-1, 1], or shares in [0, 1]. The variances of both means
        are added, which is on the safe side: each holds a part of what is left to chance. Degrees
        of freedom of the sum as Welch and Satterthwaite approximate them.

        Where few images fall, or few differ, the variance is known badly, and is 0 where none does:
        so the interval holds that over images, too, of the mean over seeds: `coull` of shares,
        `around` of differences.
        """
        seeds, images = values.shape
        each, mean = values.mean(dim=0), float(values.mean())
        parts = [(float(each.var()) / images, images - 1)]
        if seeds > 1:
            parts.append((float(values.mean(dim=1).var()) / seeds, seeds - 1))
        variance = sum(part for part, _ in parts)
        spread = sum(part**2 / freedom for part, freedom in parts)
        freedom = variance**2 / spread if spread else images - 1
        error, least = sqrt(variance), 0.0 if shares else -1.0
        half = float(student.ppf(END, freedom)) * error
        few = coull(each) if shares else around(each)
        low, high = min(few[0], max(least, mean - half)), max(few[1], min(1.0, mean + half))
        return cls(mean, error, freedom, low, high)

    @property
    def margin(self) -> float:
        """Half of the 95 % interval, of the longer side."""
        return max(self.ends)

    @property
    def ends(self) -> tuple[float, float]:
        """How far the interval reaches below the mean, and above it."""
        return self.mean - self.low, self.high - self.mean

    @property
    def share(self) -> str:
        """As a share of images that stand."""
        return f"{100 * self.mean:.1f} % ({100 * self.low:.1f} - {100 * self.high:.1f})"

    @property
    def detectable(self) -> float:
        """The difference that would have been found with 80 % probability."""
        end, power = (float(student.ppf(share, self.freedom)) for share in (END, POWER))
        return self.margin * (1 + power / end)

    def __str__(self) -> str:
        return f"{100 * self.mean:+.1f} ({100 * self.low:+.1f} to {100 * self.high:+.1f})"


def picture(shown: Mapping[str, Beside]) -> Picture:
    """Differences to adversarial training, with intervals."""
    others = {name: each for name, each in shown.items() if name != PLAIN}
    figure = canvas(7, 1.5 + 0.4 * len(others))
    axes = figure.subplots()
    places = [-number for number in range(len(others))]
    means = [100 * each.mean for each in others.values()]
    errors = [[100 * each.ends[side] for each in others.values()] for side in (0, 1)]
    axes.errorbar(means, places, xerr=errors, fmt="o", capsize=2)
    axes.axvline(0, color="grey", linewidth=1)
    axes.set_yticks(places, [*others])
    axes.set_xlabel("points beside adversarial training\n(worst case, 95 % intervals)")
    axes.grid(axis="x", alpha=0.3)
    return figure


if __name__ == "__main__":
    main(run)
