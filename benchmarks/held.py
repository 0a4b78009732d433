r"""What attacks for the nearest image hand back on a random model: does it hold with fresh draws?

    python -m benchmarks.held --output docs/results/benchmark-held.json

The model is the package's own `digits-adversarial` behind random resizing and padding. An attack
looks for the nearest adversarial image without a bound. What it hands back holds if more than half
of 50 draws, which no attack has seen, misclassify it. The nearest of many points that were tried
was also the luckiest one, so this share says more than the distance does.
"""

from __future__ import annotations

import argparse
import warnings
from typing import Any

import torch

from benchmarks.strength import parser as strengths
from benchmarks.strength_contender import WIDE
from benchmarks.strength_models import Subject, subjects
from benchmarks.timing import keep, report_file
from robusttrain import Rng
from robusttrain.attacks import (
    DDN,
    FAB,
    FMN,
    L2,
    Attack,
    CarliniWagner,
    DeepFool,
    MinimalNorm,
    NearestBoundary,
)
from robusttrain.core.processor import processor

#: Draws that judge, and streams of the attack and of the first of them.
DRAWS, ATTACKS, JUDGES = 50, 5, 100


def attacks(steps: list[int]) -> dict[str, Attack]:
    """By their names."""
    l2, linf = WIDE["l2"], WIDE["linf"]
    found: dict[str, Attack] = {}
    for count in steps:
        found |= {
            f"DDN, {count} steps": DDN(count, threat=l2),
            f"FMN, L2, {count} steps": FMN(count, threat=l2),
            f"FMN, Linf, {count} steps": FMN(count, threat=linf),
            f"nearest, L2, {count} steps": NearestBoundary(count, threat=l2),
            f"nearest, Linf, {count} steps": NearestBoundary(count, threat=linf),
        }
    return found | {
        "C&W, 3 searches of 100 steps": CarliniWagner(100, 0.05, 0.0, 3, 1.0, threat=l2),
        "DeepFool, 50 steps": DeepFool(50, threat=l2),
        "FAB, 20 steps for 9 classes": FAB(20, targets=9, nearest=True, threat=l2),
        "APGD, bisection": MinimalNorm(threat=L2(4.0)),
    }


@torch.no_grad()
def measure(subject: Subject, attack: Attack) -> dict[str, float | None]:
    """The share of the images that holds, and the median distance: of all, and with those that do
    not hold as infinitely far.
    """
    each = torch.arange(len(subject.images))
    asked = (subject.images, subject.labels, Rng.for_images(ATTACKS, each))
    adversarial = attack(subject.model, *asked)
    wrong = torch.zeros(len(each), dtype=torch.int64)  # whole draws: half of them is no majority
    for draw in range(DRAWS):
        logits = subject.model(adversarial, Rng.for_images(JUDGES + draw, each))
        wrong += logits.argmax(dim=1) != subject.labels
    holds = 2 * wrong > DRAWS
    far = attack.threat.distance(adversarial, subject.images)  # type: ignore[attr-defined]
    median = float(far.where(holds, torch.inf).median())
    return {
        "holds": round(float(holds.float().mean()), 3),
        "median_distance": round(float(far.median()), 4),
        "median_of_what_holds": round(median, 4) if median < torch.inf else None,
    }


def main(given: list[str] | None = None) -> None:
    """Parse, measure, write."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--images", type=int, default=32)
    parser.add_argument("--steps", type=int, nargs="+", default=[15, 50, 150])
    parser.add_argument("--only", nargs="+", help="attacks whose names begin like this")
    parser.add_argument("--output", type=report_file, default="results/benchmarks/held.json")
    arguments = parser.parse_args(given)
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore")
    few = ["--models", "randomized", "--images", str(arguments.images)]
    (subject,) = subjects(strengths().parse_args(few)).values()
    rows: dict[str, Any] = {}
    for name, attack in attacks(arguments.steps).items():
        if not arguments.only or name.startswith(tuple(arguments.only)):
            rows[name] = measure(subject, attack)
            print(name, rows[name], flush=True)
    keep({"machine": processor(), "images": len(subject.images), "attacks": rows}, arguments.output)


if __name__ == "__main__":
    main()
