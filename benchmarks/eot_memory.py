"""EOT on targets that are random in four ways: the memory of many draws beside that of few, and
the time of an evaluation by how many draws are one batch.

    python -m benchmarks.eot_memory --output results/benchmarks/eot_memory.json

Memory: the peak of a process of its own, above what it held before the attack, of one step with
100 draws and with 20, for batches of several sizes. Time: seconds of the processor for one step of
one image with ``--timed_draws`` draws, by how many of them are one batch (``chunk``), relative to
the fastest; each a median of interleaved rounds, on one thread. Networks are untrained and images
random: neither changes memory or time.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.memory import peak
from benchmarks.timing import machine, report_file, write
from robusttrain import Rng
from robusttrain.attacks import Average, IdentityBackward, Linf, ProjectedGradient, Target
from robusttrain.config.build import build
from robusttrain.config.presets import read
from robusttrain.core.errors import UserError
from robusttrain.defenses import AdversarialTransform, GaussianNoise, RandomResizePad
from robusttrain.models.defended import DefendedClassifier


class ActiveDropout(nn.Module):
    """A network whose dropout is left on: it draws from torch's global generator."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.network(F.dropout(images, 0.1, training=True))
        return logits


def network(preset: str) -> nn.Module:
    """An untrained network for 32 x 32 pixels."""
    torch.manual_seed(0)
    model: nn.Module = build(read("model", preset)["model"], "model")
    return model.eval()


def target(kind: str, preset: str) -> nn.Module:
    """What one attack differentiates, by how it is random."""
    f_a = network(preset)
    if kind == "dropout":
        return Target()(DefendedClassifier.of(ActiveDropout(f_a)).fast())
    if kind == "g":
        # Two steps: more of them take longer, and no more memory.
        g = AdversarialTransform(network("vgg_small"), steps=2)
        return IdentityBackward()(DefendedClassifier(g, f_a).fast())
    layers = RandomResizePad(28, 32) if kind == "randomization" else GaussianNoise(0.25)
    return Target()(DefendedClassifier(layers, f_a).fast())


KINDS = ("randomization", "noise", "dropout", "g")


def prepared_step(
    kind: str, preset: str, batch: int, draws: int, chunk: int | None
) -> Callable[[], Tensor]:
    """One step of EOT, after a first pass that loads what every attack loads."""
    source = target(kind, preset)
    images = torch.rand(batch, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    labels, rng = torch.zeros(batch, dtype=torch.int64), Rng.for_images(0, torch.arange(batch))

    def step(draws: int) -> Tensor:
        attack = ProjectedGradient(
            1, 0.002, random_start=False, threat=Linf(), gradient=Average(draws, chunk=chunk)
        )
        return attack(source, images, labels, rng)

    step(1)
    return lambda: step(draws)


def time_by_chunk(kind: str, model: str, arguments: argparse.Namespace) -> dict[str, float]:
    """Seconds of one step of one image, by chunk, relative to the fastest."""
    draws = arguments.timed_draws
    steps = {
        chunk: prepared_step(kind, model, arguments.timed_batch, draws, chunk)
        for chunk in arguments.chunks
        if chunk <= draws
    }
    spent: dict[int, list[float]] = {chunk: [] for chunk in steps}
    for _ in range(arguments.rounds):
        for chunk, step in steps.items():
            start = time.process_time()
            step()
            spent[chunk].append(time.process_time() - start)
    seconds = {chunk: statistics.median(times) for chunk, times in spent.items()}
    return {str(chunk): round(each / min(seconds.values()), 3) for chunk, each in seconds.items()}


def memory(kind: str, batch: int, arguments: argparse.Namespace) -> dict[str, float]:
    """MiB with few and with many draws, and their ratio."""
    few, many = (
        peak(prepared_step, kind, arguments.model, batch, draws, None)
        for draws in (arguments.few_draws, arguments.draws)
    )
    return {
        str(arguments.few_draws): round(few, 1),
        str(arguments.draws): round(many, 1),
        "ratio": round(many / few, 3),
    }


def main() -> None:
    """Parse, measure, write."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="vgg_small", help="model preset of f_a (untrained)")
    parser.add_argument("--draws", type=int, default=100, help="many draws")
    parser.add_argument("--few_draws", type=int, default=20, help="few draws")
    parser.add_argument("--batches", type=int, nargs="*", default=[1, 8])
    parser.add_argument("--kinds", nargs="+", default=KINDS, choices=KINDS)
    parser.add_argument("--timed_kinds", nargs="*", default=["randomization"], choices=KINDS)
    parser.add_argument("--timed_models", nargs="+", default=["vgg_small", "resnet_small"])
    parser.add_argument("--timed_draws", type=int, default=100)
    parser.add_argument("--timed_batch", type=int, default=1)
    parser.add_argument("--chunks", type=int, nargs="*", default=[1, 5, 10, 20, 50, 100])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--output", type=report_file, default="results/benchmarks/eot_memory.json")
    arguments = parser.parse_args()
    if arguments.few_draws >= arguments.draws:
        raise UserError(f"--draws {arguments.draws}: give more than --few_draws")
    report: dict[str, Any] = {
        "command": "python -m benchmarks.eot_memory " + " ".join(sys.argv[1:]),
        "machine": machine(),
        "model": arguments.model,
        "peak_mib_above_start": {
            kind: {str(batch): memory(kind, batch, arguments) for batch in arguments.batches}
            for kind in arguments.kinds
        },
    }
    report["largest_ratio"] = max(
        (row["ratio"] for rows in report["peak_mib_above_start"].values() for row in rows.values()),
        default=None,
    )
    torch.set_num_threads(1)
    report["time_by_draws_at_once_relative_to_fastest"] = {
        model: {kind: time_by_chunk(kind, model, arguments) for kind in arguments.timed_kinds}
        for model in arguments.timed_models
    }
    write(report, arguments.output)


if __name__ == "__main__":
    main()
