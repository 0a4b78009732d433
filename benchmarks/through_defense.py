"""Memory and time of gradients through a purifier of many steps: kept or computed anew.

    python -m benchmarks.through_defense

The purifier is a loop of small convolutional networks with noise in each step, on 16 images of
32 x 32 pixels, before a linear classifier. Memory is the peak of a process of its own above what
it held before the gradient; time is the best of three in one process, as a ratio.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import torch
from torch import Tensor, nn

from benchmarks.memory import peak
from robusttrain.attacks import Target, ThroughDefense
from robusttrain.core.rng import Rng
from robusttrain.defenses import Defense
from robusttrain.models.defended import DefendedClassifier

STEPS = (10, 100)


class Purifier(Defense):
    """Denoises a little in each of its steps, and adds a little noise."""

    random = stepwise = True

    def __init__(self, steps: int) -> None:
        super().__init__()
        self.steps = steps
        self.network = nn.Sequential(
            nn.Conv2d(3, 32, 3, padding=1),
            nn.SiLU(),
            nn.Conv2d(32, 32, 3, padding=1),
            nn.SiLU(),
            nn.Conv2d(32, 3, 3, padding=1),
        )

    def transform(self, images: Tensor, rng: Rng) -> Tensor:
        def step(state: Tensor, number: int, streams: Rng) -> Tensor:
            noise: Tensor = 0.01 * streams.normal(images.shape[1:])
            return state + 0.05 * self.network(state) + noise

        return self.loop(step, images, self.steps, rng)


def prepare(steps: int, anew: bool) -> Callable[[], object]:
    """The gradient of a batch through a purifier."""
    torch.manual_seed(0)
    torch.set_num_threads(1)
    classifier = nn.Sequential(nn.Flatten(), nn.Linear(3 * 32 * 32, 10))
    target = DefendedClassifier(Purifier(steps), classifier)
    model = ThroughDefense()(target) if anew else Target()(target)
    images, rng = torch.rand(16, 3, 32, 32), Rng.for_images(0, torch.arange(16))

    def gradient(points: Tensor = images) -> Tensor:
        x = points.clone().requires_grad_()
        (found,) = torch.autograd.grad(model(x, rng[: len(x)]).logsumexp(dim=1).sum(), x)
        return found

    gradient(images[:1])
    return gradient


def seconds(run: Callable[[], object]) -> float:
    """The best of three."""
    taken = []
    for _ in range(3):
        start = time.perf_counter()
        run()
        taken.append(time.perf_counter() - start)
    return min(taken)


def main() -> None:
    """Print a line for each, and the ratios."""
    memory, times = {}, {}
    for anew in (False, True):
        for steps in STEPS:
            memory[anew, steps] = peak(prepare, steps, anew)
            times[anew, steps] = seconds(prepare(steps, anew))
            kind = "computed anew" if anew else "kept"
            print(f"{kind}, {steps} steps: {memory[anew, steps]:.1f} MiB")
    few, many = STEPS
    print(f"memory, {many} steps to {few}, kept: {memory[False, many] / memory[False, few]:.2f}")
    print(f"memory, {many} steps to {few}, anew: {memory[True, many] / memory[True, few]:.2f}")
    for steps in STEPS:
        print(f"time, anew to kept, {steps}: {times[True, steps] / times[False, steps]:.2f}")


if __name__ == "__main__":
    main()
