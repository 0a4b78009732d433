"""What a study will cost, from two short measurements on this machine."""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from itertools import takewhile

import torch
import torch.nn.functional as F

from robusttrain import fast_copy
from robusttrain.attacks import Checkpoint, ClassifierOnly, Ensemble, EnsemblePattern, MeanStart
from robusttrain.config.attacks import split_attacks, unopened
from robusttrain.config.suites import entries
from studies.models import configuration, initial_network
from studies.parts import Argument, Point, Training
from studies.scales import Scale

#: Share of the images that a suite's attack sees, where each is handed on only while it survives: a
#: guess.
SURVIVING = 0.25
#: Seconds that every training and every point takes to start.
OVERHEAD = 1.0


def seconds(scale: Scale, models: Iterable[Training], points: Iterable[Point]) -> float:
    """Roughly what training ``models`` and measuring ``points`` takes here."""
    data = [str(argument) for argument in scale.data]
    f_a = seconds_per_gradient([*data, *map(str, scale.model)])
    models, points = list(models), list(points)
    f_b = inside_g = 0.0
    # Transfer between models has no g
    if models or not all("--models" in point.arguments for point in points):
        f_b = seconds_per_gradient([*data, "--model", "vgg_small"])
        inside_g = seconds_per_gradient([*data, "--model", "vgg_small"], scale.precision)
    total = OVERHEAD * (len(models) + len(points))
    for training in models:
        network = f_b if "vgg_small" in training.arguments else f_a
        # Weights get gradients as well here, which the measurement leaves out: half as much again.
        each = training.passes * (1.5 * network + training.steps * inside_g)
        total += training.epochs * training.images * each
    for point in points:
        total += (
            point.transforms * scale.steps * inside_g
            if point.measure
            else _attacking(point, f_a, inside_g)
        )
    return total


def _attacking(point: Point, f_a: float, f_b: float) -> float:
    """Seconds of a point that evaluate.py measures, from those of a gradient of f_a, and of f_b
    inside g.
    """
    # Trained models have no path yet; the attacks' costs do not depend on it.
    arguments = [_typed(argument) for argument in point.arguments]
    names, overrides, rest = split_attacks(arguments)
    # Suites set --option=value
    rest = [part for argument in rest for part in argument.split("=", 1)]
    options = dict(zip(rest[::2], rest[1::2], strict=False))
    images, draws = int(options["--images"]), int(options.get("--draws", 1))
    if "--models" in arguments:
        return _transferring(arguments, names, overrides, images, f_a)
    targets = [argument for argument in point.arguments if isinstance(argument, Training)]
    steps = int(options.get("--defense.steps", targets[0].steps if targets else 0))
    through_g = f_a + steps * f_b
    each, found = 0.0, unopened(names, overrides)
    names = _applying(point, names, targets[:1], steps)
    for scenario in map(found.__getitem__, names):
        cost = scenario.attack.cost()
        # Other sources go through a g; the start of this attack does so too.
        source = (
            f_a
            if isinstance(scenario.source, ClassifierOnly | Checkpoint | Ensemble)
            else through_g
        )
        if isinstance(scenario.source, EnsemblePattern):  # 21 patterns, each evaluated twice over
            source *= 42
        queried = through_g if isinstance(scenario.attack, MeanStart) else source
        each += cost.gradients * source + cost.queries * queried
    if "--survivors" in options:
        each *= SURVIVING
    # Scores and the choice of the worst attack each take `draws` verdicts, clean and for every
    # attack.
    return images * (each + 2 * draws * (1 + len(names)) * through_g)


def _applying(point: Point, names: list[str], targets: Sequence[Training], steps: int) -> list[str]:
    """Those of a suite's attacks that apply, as far as the target's training tells."""
    layers = any("randomization" in training.arguments for training in targets)
    facts = {
        "differentiable": not steps,
        "iterative": bool(steps),
        "defended": bool(steps) or layers,
        "random": bool(steps) or layers,
        "draws_patterns": layers,
    }
    pairs = zip(point.arguments, point.arguments[1:], strict=False)
    listed = [
        entry for option, value in pairs if option == "--suite" for entry in entries(str(value))
    ]
    out = {
        entry.attack
        for entry in listed
        if any(facts.get(fact, want) != want for fact, want in entry.when.items())
    }
    return [name for name in names if name not in out]


def _transferring(
    arguments: list[str],
    names: list[str],
    overrides: list[tuple[str, str]],
    images: int,
    f_a: float,
) -> float:
    """Seconds of a point that crafts on several models; those kept from before are not known
    here.
    """
    first = arguments.index("--models") + 1
    models = sum(
        1 for _ in takewhile(lambda argument: not argument.startswith("--"), arguments[first:])
    )
    # Held-out ensembles have all models but one each, and their members are evaluated twice over.
    passes = models + (2 * models * (models - 1) if "--held_out" in arguments else 0)
    costs = [scenario.attack.cost() for scenario in unopened(names, overrides).values()]
    return images * passes * f_a * sum(cost.gradients + 0.4 * cost.queries for cost in costs)


def _typed(argument: Argument) -> str:
    return (
        "model" if isinstance(argument, Training) else getattr(argument, "pattern", str(argument))
    )


def seconds_per_gradient(
    arguments: list[str], precision: str = "float32", batch: int = 16
) -> float:
    """Seconds of one forward and one backward pass to the image, per image, of a network that
    train.py would build.
    """
    device = "cuda" if torch.cuda.is_available() else "cpu"
    _, data = configuration(arguments)
    _, channels, size = data.facts()
    network = fast_copy(initial_network(arguments).eval().to(device), getattr(torch, precision))
    images = torch.rand(batch, channels, size, size, device=device).contiguous(
        memory_format=torch.channels_last
    )
    labels = torch.zeros(batch, dtype=torch.long, device=device)
    spent = []
    for _ in range(3):
        start = time.perf_counter()
        moved = images.clone().requires_grad_()
        torch.autograd.grad(F.cross_entropy(network(moved), labels), moved)[0].sum().item()
        spent.append(time.perf_counter() - start)
    return min(spent) / batch
