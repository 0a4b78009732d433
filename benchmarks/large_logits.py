r"""A model whose logits are multiplied is as robust as before: what do attacks leave of it?

    python -m benchmarks.large_logits --output docs/results/benchmark-large-logits.json

The model is the package's own `digits-adversarial`, its logits times 1, 10 and 100, which changes
no answer. Attacks that climb cross entropy, ours and torchattacks' (where it is installed), have
the same radius, steps and images; ours climb torch's cross entropy as well, as an objective of
one's own (`Plain`). Linf 0.15, the first test images of the digits.
"""

from __future__ import annotations

import argparse
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import version
from importlib.util import find_spec
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import robusttrain
from benchmarks.timing import keep, report_file
from robusttrain import Rng
from robusttrain.attacks import APGD, CrossEntropy, Linf, Objective, ProjectedGradient
from robusttrain.core.processor import processor
from robusttrain.data import Digits

EPSILON, STEP, FACTORS = 0.15, 0.015, (1.0, 10.0, 100.0)
#: From a model, images and labels to adversarial images.
Run = Callable[[nn.Module, Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class Plain(Objective):
    """Cross entropy with torch's derivative."""

    def __call__(self, logits: Tensor, goal: Tensor) -> Tensor:
        return F.cross_entropy(logits, goal, reduction="none")


class Times(nn.Module):
    """A model's logits times a factor."""

    def __init__(self, model: nn.Module, factor: float) -> None:
        super().__init__()
        self.model, self.factor = model, factor

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.factor * self.model(images)
        return logits


def attacks(steps: int) -> dict[str, Run]:
    """By their names."""
    found: dict[str, Run] = {}
    for name, objective in (("", CrossEntropy()), (", torch's cross entropy", Plain())):
        threat = Linf(EPSILON)
        for kind, attack in (
            (f"PGD-{steps}", ProjectedGradient(steps, STEP, threat=threat, objective=objective)),
            (f"APGD-{steps}", APGD(steps, threat=threat, objective=objective)),
        ):

            def ours(model: nn.Module, x: Tensor, y: Tensor, attack: Any = attack) -> Tensor:
                found: Tensor = attack(model, x, y, Rng.for_images(0, torch.arange(len(x))))
                return found

            found[f"{kind} (ours{name})"] = ours
    if find_spec("torchattacks") is not None:
        import torchattacks

        def pgd(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
            found: Tensor = torchattacks.PGD(model, EPSILON, STEP, steps)(x, y)
            return found

        def apgd(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
            made = torchattacks.APGD(model, norm="Linf", eps=EPSILON, steps=steps, loss="ce")
            found: Tensor = made(x, y)
            return found

        found |= {f"PGD-{steps} (torchattacks)": pgd, f"APGD-{steps} (torchattacks)": apgd}
    return found


def measure(images: int, steps: int) -> tuple[int, dict[str, dict[str, float]]]:
    """How many images there were, and from each attack to the robust accuracy in percent, by
    factor.
    """
    model = robusttrain.load("digits-adversarial").requires_grad_(False)
    data = Digits(images)
    data.limit_test(images, seed=0, at_most=True)
    data.setup("test")
    batch = data.on_after_batch_transfer(next(iter(data.test_dataloader())), 0)
    x, y = batch.images.contiguous(), batch.labels
    rows: dict[str, dict[str, float]] = {}
    for name, run in attacks(steps).items():
        rows[name] = {}
        for factor in FACTORS:
            torch.manual_seed(0)
            adversarial = run(Times(model, factor).eval(), x.clone(), y)
            with torch.no_grad():
                right = (model(adversarial).argmax(dim=1) == y).double().mean()
            rows[name][f"{factor:g}"] = round(100 * float(right), 1)
        print(name, rows[name], flush=True)
    return len(x), rows


def main(given: list[str] | None = None) -> None:
    """Parse, measure, write."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--images", type=int, default=100)
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument(
        "--output", type=report_file, default="results/benchmarks/large-logits.json"
    )
    arguments = parser.parse_args(given)
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore")
    count, rows = measure(arguments.images, arguments.steps)
    there = version("torchattacks") if find_spec("torchattacks") is not None else None
    report = {"machine": processor(), "images": count, "epsilon": EPSILON}
    keep({**report, "torchattacks": there, "accuracy": rows}, arguments.output)


if __name__ == "__main__":
    main()
