"""Memory and time of gradients through a purifier of many steps: kept or computed anew.

    python -m benchmarks.through_defense

The purifier is the defense `Diffusion` with its own network, on 16 images of 32 x 32 pixels, before
a linear classifier. Memory is the peak of a process of its own above what it held before the
gradient; time is the best of three in one process, as a ratio. Computed anew, memory still grows by
the states between the steps, one batch of images each: little beside the activations of a step.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import torch
from torch import Tensor, nn

from benchmarks.memory import peak
from robusttrain.attacks import Target, ThroughDefense
from robusttrain.core.rng import Rng
from robusttrain.defenses import Diffusion
from robusttrain.models import NoiseNetwork
from robusttrain.models.defended import DefendedClassifier

STEPS = (10, 100)


def prepare(steps: int, anew: bool) -> Callable[[], object]:
    """The gradient of a batch through a purifier."""
    torch.manual_seed(0)
    torch.set_num_threads(1)
    classifier = nn.Sequential(nn.Flatten(), nn.Linear(3 * 32 * 32, 10))
    target = DefendedClassifier(Diffusion(NoiseNetwork(), steps=steps), classifier)
    model = ThroughDefense()(target) if anew else Target()(target)
    images, rng = torch.rand(16, 3, 32, 32), Rng.for_images(0, torch.arange(16))

    def gradient(points: Tensor = images) -> Tensor:
        x = points.clone().requires_grad_()
        (slope,) = torch.autograd.grad(model(x, rng[: len(x)]).logsumexp(dim=1).sum(), x)
        return slope

    gradient(images[:1])
    return gradient


def seconds(*runs: Callable[[], object]) -> list[float]:
    """Of each, the best of three, taken in turns: processor time, since there is one thread."""
    taken: list[list[float]] = [[] for _ in runs]
    for _ in range(3):
        for each, times in zip(runs, taken, strict=True):
            start = time.process_time()
            each()
            times.append(time.process_time() - start)
    return [min(times) for times in taken]


def main() -> None:
    """Print a line for each, and the ratios."""
    memory = {}
    for anew in (False, True):
        for steps in STEPS:
            memory[anew, steps] = peak(prepare, steps, anew)
            kind = "computed anew" if anew else "kept"
            print(f"{kind}, {steps} steps: {memory[anew, steps]:.1f} MiB")
    few, many = STEPS
    print(f"memory, {many} steps to {few}, kept: {memory[False, many] / memory[False, few]:.2f}")
    print(f"memory, {many} steps to {few}, anew: {memory[True, many] / memory[True, few]:.2f}")
    for steps in STEPS:
        plain, recomputed = seconds(prepare(steps, False), prepare(steps, True))
        print(f"time, anew to kept, {steps} steps: {recomputed / plain:.2f}")


if __name__ == "__main__":
    main()
