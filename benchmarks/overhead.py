"""How much of a training step is Python's: ours, in Lightning's trainer, beside the bare loop.

    python -m benchmarks.overhead --output overhead.json

Where a GPU computes faster than Python hands out its work, this is what a step costs. So the
network has the layers of ResNet-18, and channels and images so small that there is next to nothing
to compute. Rounds take turns; what is reported is a ratio of medians.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
import warnings
from collections.abc import Callable
from typing import Any

import pytorch_lightning as pl
import torch
import torch.nn.functional as F
from rich.progress import track
from torch import Tensor
from torch.utils.data import DataLoader

from benchmarks.timing import machine, report_file, write
from benchmarks.training_peers import optimizer_of
from robusttrain.core.processor import finish
from robusttrain.data import Batch
from robusttrain.models import CifarResNet
from robusttrain.models.defended import DefendedClassifier
from robusttrain.training import NFGSM, RobustTraining
from robusttrain.training.callbacks import EMA

#: Steps before those that are timed.
WARM = 20
EPSILON = 8 / 255


def network() -> CifarResNet:
    """The layers of ResNet-18, with four channels each."""
    torch.manual_seed(0)
    return CifarResNet(num_classes=10, in_channels=3, widths=[4, 4, 4, 4], blocks=2)


def batches(count: int) -> DataLoader[Batch]:
    """Batches of two images of 8 x 8 pixels."""

    def collected(indices: list[int]) -> Batch:
        numbers = torch.tensor(indices)
        return Batch(torch.rand(len(indices), 3, 8, 8), numbers % 10, numbers)

    return DataLoader(range(2 * count), batch_size=2, collate_fn=collected)  # type: ignore[arg-type]


class Clock(pl.Callback):
    """Seconds of a step, after those that warm up."""

    def __init__(self, steps: int) -> None:
        self.steps, self.seconds, self._start = steps, 0.0, 0.0

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, number: int) -> None:
        if number in (WARM, WARM + self.steps):
            finish(pl_module.device)
            self.seconds = (time.perf_counter() - self._start) / self.steps
            self._start = time.perf_counter()


def ours(device: torch.device, steps: int, averaged: bool) -> float:
    """Seconds of a step of N-FGSM in Lightning's trainer."""
    clock = Clock(steps)
    trainer = pl.Trainer(
        accelerator="gpu" if device.type == "cuda" else "cpu",
        devices=1,
        max_epochs=1,
        limit_train_batches=WARM + steps + 1,
        limit_val_batches=0,
        callbacks=[clock, *([EMA(0.995)] if averaged else [])],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    module = RobustTraining(DefendedClassifier(None, network()), 10, NFGSM())
    trainer.fit(module, batches(WARM + steps + 1))
    return clock.seconds


def bare(device: torch.device, steps: int) -> float:
    """Seconds of a step of N-FGSM as one would write it down."""
    model = network().train().to(device)
    optimizer = optimizer_of(model)
    start = 0.0
    for number, batch in enumerate(batches(WARM + steps)):
        if number == WARM:
            finish(device)
            start = time.perf_counter()
        images, labels = batch.images.to(device), batch.labels.to(device)
        noisy = images + torch.empty_like(images).uniform_(-2 * EPSILON, 2 * EPSILON)
        noisy = noisy.clamp(0, 1).requires_grad_()
        (slope,) = torch.autograd.grad(F.cross_entropy(model(noisy), labels), noisy)
        optimizer.zero_grad()
        adversarial: Tensor = (noisy.detach() + EPSILON * slope.sign()).clamp(0, 1)
        F.cross_entropy(model(adversarial), labels).backward()
        optimizer.step()
    finish(device)
    return (time.perf_counter() - start) / steps


def main() -> None:
    """Parse, take turns, write."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument("--steps", type=int, default=200, help="that are timed in a round")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--output", type=report_file, default="results/benchmarks/overhead.json")
    arguments = parser.parse_args()
    device = torch.device(arguments.device)
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    contenders: dict[str, Callable[[], float]] = {
        "bare": lambda: bare(device, arguments.steps),
        "ours": lambda: ours(device, arguments.steps, averaged=False),
        "ours, weights averaged": lambda: ours(device, arguments.steps, averaged=True),
    }
    spent: dict[str, list[float]] = {name: [] for name in contenders}
    for _ in track(range(arguments.rounds), "rounds"):
        for name, call in contenders.items():
            spent[name].append(call())
    medians = {name: statistics.median(each) for name, each in spent.items()}
    report = {
        "command": "python -m benchmarks.overhead " + " ".join(sys.argv[1:]),
        "machine": machine(device),
        "steps": arguments.steps,
        "rounds": arguments.rounds,
        "time_relative_to_the_bare_loop": {
            name: round(each / medians["bare"], 2) for name, each in medians.items()
        },
    }
    write(report, arguments.output)


if __name__ == "__main__":
    main()
