"""Robust accuracy over gradient evaluations spent, for EOT with fixed draws and until clear.

    python -m benchmarks.adaptive_draws --output results/benchmarks/adaptive_draws.json

Three random targets: two packaged models of the digits behind randomization layers, and `digits-g`,
whose g is attacked by BPDA-I. The same steps, step size, images and scoring draws serve all
estimators; a point is `Average` with a number of draws, or `AverageUntilClear` with a tolerance.
Each image is scored over fresh draws. With --root and --f_b the networks are those of CIFAR-10: f_b
behind randomization layers. A point of an adaptive line is named by the draws of its
rounds and by its tolerance. Differences from the most fixed draws are taken image by image, over
all seeds; their intervals are over images.
"""

from __future__ import annotations

import argparse
import math
import sys
from pathlib import Path
from typing import Any

import torch
from matplotlib.figure import Figure
from torch import Tensor, nn

import robusttrain
from benchmarks.timing import load_images, machine, network, report_file, write
from benchmarks.until_clear import AverageUntilClear
from robusttrain.attacks import (
    Average,
    GradientEstimator,
    IdentityBackward,
    Linf,
    ProjectedGradient,
    Source,
    Target,
)
from robusttrain.core.allocator import keep_freed_memory
from robusttrain.data import Digits, ImageData
from robusttrain.defenses import RandomResizePad
from robusttrain.evaluation.engine import Engine
from robusttrain.evaluation.scenario import Scenario
from robusttrain.models.defended import DefendedClassifier

#: 97.5 % of a normal distribution lie below this many standard deviations.
Z95 = 1.959964


def digits(count: int) -> tuple[Tensor, Tensor]:
    """Test images (B, 1, 16, 16) in [0, 1], and labels."""
    data: ImageData = Digits(batch_size=count)
    data.limit_test(count, seed=0)
    data.setup("test")
    batch = data.on_after_batch_transfer(next(iter(data.test_dataloader())), 0)
    return batch.images.contiguous(), batch.labels


def target(name: str, arguments: argparse.Namespace) -> tuple[nn.Module, Source, Tensor, Tensor]:
    """A random target, what the attacker differentiates, images and labels."""
    if name == "f_b-randomization":
        data, images, labels = load_images(arguments.root, arguments.images)
        f_b = network("vgg_small", arguments.f_b, data)
        return DefendedClassifier(RandomResizePad(28, 32), f_b), Target(), images, labels
    images, labels = digits(arguments.images)
    if name == "digits-g":
        return robusttrain.load("digits-g"), IdentityBackward(), images, labels
    model = robusttrain.load(name.removesuffix("-randomization"))
    return DefendedClassifier(RandomResizePad(LOWEST[name], 18), model), Target(), images, labels


#: Targets by name, and the radius that leaves each of them some images to fight for.
RADII = {
    "digits-adversarial-randomization": 0.12,
    "digits-standard-randomization": 0.04,
    "digits-g": 0.062,
    "f_b-randomization": 0.031,
}
#: Least side after the random resizing of 16 pixels, before they are padded to 18: what leaves the
#: model most of its accuracy.
LOWEST = {"digits-adversarial-randomization": 14, "digits-standard-randomization": 16}


def estimators(arguments: argparse.Namespace) -> dict[str, GradientEstimator]:
    """All points of the curve by name."""
    most = max(arguments.draws)
    fixed: dict[str, GradientEstimator] = {f"fixed {n}": Average(n) for n in arguments.draws}
    return fixed | {
        f"from {least}, {tolerance:g}": AverageUntilClear(most, least, tolerance)
        for least in arguments.least
        for tolerance in arguments.tolerances
    }


def curve(name: str, arguments: argparse.Namespace) -> dict[str, Any]:
    """One target: accuracy and evaluations of each point, over all seeds."""
    model, source, images, labels = target(name, arguments)
    epsilon = RADII[name]
    right: dict[str, list[Tensor]] = {}
    spent: dict[str, list[float]] = {}
    for seed in arguments.seeds:
        for point, estimator in estimators(arguments).items():
            attack = ProjectedGradient(
                steps=arguments.steps,
                random_start=False,
                threat=Linf(epsilon),
                gradient=estimator,
            )
            # The same name, and so the same draws, for all points: their differences are their own.
            engine = Engine(
                model,
                {"eot": Scenario(attack, source)},
                seed=seed,
                draws=arguments.scoring_draws,
            )
            records, _ = engine.run(images, labels, torch.arange(len(images)))
            rows = records.of("eot")
            right.setdefault(point, []).append(rows.right)
            spent.setdefault(point, []).append(rows.gradients.double().mean().item())
            print(
                f"{name}, seed {seed}, {point}: {rows.right.mean():.4f}, {spent[point][-1]:.1f}",
                file=sys.stderr,
                flush=True,
            )
        right.setdefault("clean", []).append(records.of("clean").right)
    mean = {point: torch.stack(each).mean(dim=0) for point, each in right.items()}
    reference = mean[f"fixed {max(arguments.draws)}"]

    def row(point: str) -> dict[str, Any]:
        gap = mean[point] - reference
        error = gap.std().item() / math.sqrt(len(gap))
        return {
            "gradients_per_image_and_step": round(
                sum(spent[point]) / len(spent[point]) / arguments.steps, 2
            ),
            "robust_accuracy": round(mean[point].mean().item(), 4),
            "by_seed": [round(each.mean().item(), 4) for each in right[point]],
            "points_above_most_draws": round(100 * gap.mean().item(), 2),
            "ci95": [round(100 * (gap.mean().item() + sign * Z95 * error), 2) for sign in (-1, 1)],
        }

    return {
        "epsilon": epsilon,
        "clean": round(mean["clean"].mean().item(), 4),
        "points": {point: row(point) for point in spent},
    }


def _line(point: str) -> str:
    """The line of the picture that a point is on."""
    return point.rpartition(" ")[0].rstrip(",")


def drawn(curves: dict[str, dict[str, Any]]) -> Figure:
    """Robust accuracy over evaluations, a panel for each target."""
    figure = Figure(figsize=(4.2 * len(curves), 3.6), layout="constrained")
    panels = figure.subplots(1, len(curves), squeeze=False)[0]
    for axes, (name, found) in zip(panels, curves.items(), strict=True):
        # "fixed 10" and "from 2, 0.5": the last word tells points of a line apart.
        for kind, marker in zip(dict.fromkeys(map(_line, found["points"])), "osv^D", strict=False):
            rows = sorted(
                (
                    each["gradients_per_image_and_step"],
                    100 * each["robust_accuracy"],
                    point.split()[-1],
                )
                for point, each in found["points"].items()
                if _line(point) == kind
            )
            axes.plot([row[0] for row in rows], [row[1] for row in rows], marker=marker, label=kind)
            for x, y, word in rows:
                axes.annotate(word, (x, y), textcoords="offset points", xytext=(3, 4), fontsize=7)
        axes.set_title(f"{name}, epsilon {found['epsilon']:g}", fontsize="small")
        axes.set_xscale("log")
        axes.set_xlabel("gradient evaluations a step, mean over images")
        axes.set_ylabel("robust accuracy, %")
        axes.grid(alpha=0.3)
        axes.legend(fontsize="small")
    return figure


def main() -> None:
    """Parse, measure, write."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--root", help="CIFAR-10 as an image folder with test/")
    parser.add_argument("--f_b", help="weights of f_b, a vgg_small")
    parser.add_argument("--targets", nargs="+", choices=RADII)
    parser.add_argument("--images", type=int, default=200)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--draws", type=int, nargs="+", default=[1, 3, 5, 10, 20, 30])
    parser.add_argument("--least", type=int, nargs="+", default=[2, 5])
    parser.add_argument("--tolerances", type=float, nargs="+", default=[0.7, 0.5, 0.3])
    parser.add_argument("--scoring_draws", type=int, default=30)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument(
        "--output", type=report_file, default="results/benchmarks/adaptive_draws.json"
    )
    arguments = parser.parse_args()
    if bool(arguments.root) != bool(arguments.f_b):
        parser.error("--root and --f_b belong together")
    if arguments.targets is None:
        cifar = (*RADII,)[-1:] if arguments.root else (*RADII,)[:-1]
        arguments.targets = list(cifar)
    keep_freed_memory()
    curves = {name: curve(name, arguments) for name in arguments.targets}
    command = "python -m benchmarks.adaptive_draws " + " ".join(sys.argv[1:])
    report = {
        "command": command.strip(),
        "machine": machine(),
        "images": arguments.images,
        "steps": arguments.steps,
        "scoring_draws": arguments.scoring_draws,
        "seeds": arguments.seeds,
        "curves": curves,
    }
    write(report, arguments.output)
    drawn(curves).savefig(Path(arguments.output).with_suffix(".png"), dpi=110)


if __name__ == "__main__":
    main()
