"""Compiled gradients beside plain ones: PGD, g and a training step, on f_b's network.

    python -m benchmarks.compiled --root data/cifar10-jpeg --weights FILE --output compiled.json

All run in one process and take turns, so what is reported is a ratio of medians. Nothing comes
from torch's cache of compiled code, so the seconds of compiling are those of the first time. On a
GPU there are two ways of compiling: ``default``, and ``reduce-overhead``, which has CUDA graphs.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import tempfile
import warnings
from collections.abc import Callable
from typing import Any

import torch
from rich.progress import track
from torch import Tensor, nn

from benchmarks.timing import load_images, machine, network, report_file, timed, write
from robusttrain import Rng, fast_copy
from robusttrain.attacks import Linf, ProjectedGradient
from robusttrain.core.allocator import keep_freed_memory
from robusttrain.data import Batch
from robusttrain.defenses import AdversarialTransform
from robusttrain.evaluation import verdicts
from robusttrain.evaluation.compiling import modes_on
from robusttrain.models.compiling import CompilationFailed, Mode, gradients_by
from robusttrain.models.defended import DefendedClassifier
from robusttrain.training import RobustTraining
from robusttrain.training.objectives import Adversarial

Work = Callable[[Mode], Tensor]
TYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


def works(
    arguments: argparse.Namespace, build: Callable[[], nn.Module], images: Tensor, labels: Tensor
) -> dict[str, Work]:
    """What is timed, each a call that takes a mode."""
    indices = torch.arange(len(images), device=images.device)
    rng = Rng.for_images(0, indices)
    images = images.contiguous(memory_format=torch.channels_last)
    pgd = ProjectedGradient(
        steps=arguments.steps,
        step_size=arguments.epsilon / 4,
        threat=Linf(arguments.epsilon),
    )

    def attack(name: str) -> Work:
        fast = fast_copy(build(), TYPES[name])

        def work(mode: Mode) -> Tensor:
            with gradients_by(mode):
                return pgd(fast, images, labels, rng)

        return work

    def transformed() -> Work:
        transform = AdversarialTransform(build(), None, arguments.radius, arguments.g_steps)
        transform.to(images.device)

        def work(mode: Mode) -> Tensor:
            with gradients_by(mode):
                return transform(images, rng)

        return work

    def trained() -> Work:
        model = DefendedClassifier(None, build())
        training = RobustTraining(model, 10, Adversarial(attack=pgd)).train().to(images.device)
        training.setup("fit")
        batch = Batch(images, labels, indices)

        def work(mode: Mode) -> Tensor:
            if training.compiled != mode:
                training.compiled_as(mode)
            losses, _ = training.losses(batch, 0, 0)
            losses.mean().backward()
            return losses.detach()

        return work

    made: dict[str, Work] = {f"pgd {name}": attack(name) for name in arguments.dtypes}
    return {**made, "g float32": transformed(), "training step": trained()}


def in_turns(
    work: Work, modes: list[Mode], rounds: int, name: str
) -> tuple[dict[str, Any], dict[Mode, Tensor]]:
    """Seconds of one piece of work and ratios to the plain one, and what it returned last, by mode.

    What cannot be compiled runs plain, with a warning, and stands there as failed.
    """
    spent: dict[Mode, list[float]] = {mode: [] for mode in modes}
    first: dict[Mode, float] = {}
    results: dict[Mode, Tensor] = {}
    failed: dict[Mode, str] = {}
    for number in track(range(rounds + 2), name):
        for mode, seconds in spent.items():
            with warnings.catch_warnings(record=True) as caught:
                warnings.simplefilter("always", CompilationFailed)
                took, results[mode] = timed(lambda: work(mode))  # noqa: B023 - at once
            for each in caught:
                if issubclass(each.category, CompilationFailed):
                    failed[mode] = str(each.message)
            if number == 0:
                first[mode] = took
            elif number > 1:
                seconds.append(took)
    plain = statistics.median(spent["off"])
    row: dict[str, Any] = {"seconds_plain": round(plain, 4)}
    for mode in modes[1:]:
        compiled = statistics.median(spent[mode])
        ratios = sorted(b / a for a, b in zip(spent["off"], spent[mode], strict=True))
        row[mode] = {
            "time_relative_to_plain": round(compiled / plain, 3),
            "in_single_rounds": [round(ratios[0], 3), round(ratios[-1], 3)],
            "seconds_of_compiling": round(max(0.0, first[mode] - compiled), 1),
        }
        if mode in failed:
            row[mode] = {"failed": failed[mode]}
    return row, results


def compare(arguments: argparse.Namespace) -> dict[str, Any]:
    """One report."""
    device = torch.device(arguments.device)
    data, images, labels = load_images(arguments.root, arguments.images, device=device)

    def build() -> nn.Module:
        return network(arguments.model, arguments.weights, data, device)

    modes: list[Mode] = ["off", *modes_on(device)]
    rng = Rng.for_images(0, torch.arange(len(images), device=device))
    report: dict[str, Any] = {}
    for name, work in works(arguments, build, images, labels).items():
        report[name], results = in_turns(work, modes, arguments.rounds, name)
        for mode in modes[1:]:
            told = report[name][mode]
            if name.startswith("pgd"):
                judged = [
                    verdicts(build(), results[each], labels, rng, 1)[:, 0] for each in ("off", mode)
                ]
                told["verdicts_that_differ"] = int((judged[0] != judged[1]).sum())
            if name.startswith("g "):
                off = (results["off"] - results[mode]).abs() > 1e-3
                told["share_of_pixels_that_differ"] = round(off.float().mean().item(), 5)
    return {
        "command": "python -m benchmarks.compiled " + " ".join(arguments.command),
        "machine": machine(device),
        "model": arguments.model,
        "images": len(images),
        "steps": arguments.steps,
        "epsilon": arguments.epsilon,
        "rounds": arguments.rounds,
        "compiled": report,
    }


def main() -> None:
    """Parse, compare, write."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--root", help="image folder with test/; by default embedded digits")
    parser.add_argument("--device", default="cpu", help="cpu, cuda, cuda:1, ...")
    parser.add_argument("--model", default="vgg_small", help="model preset")
    parser.add_argument("--weights", help="its weights")
    parser.add_argument("--images", type=int, default=128, help="one batch of this many images")
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--epsilon", type=float, default=0.031)
    parser.add_argument("--radius", type=float, default=0.2, help="of g")
    parser.add_argument("--g_steps", type=int, default=13)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--dtypes", nargs="+", choices=[*TYPES], default=[*TYPES])
    parser.add_argument("--output", type=report_file, default="results/benchmarks/compiled.json")
    arguments = parser.parse_args()
    arguments.command = sys.argv[1:]
    keep_freed_memory()
    with tempfile.TemporaryDirectory() as nothing_yet:
        os.environ["TORCHINDUCTOR_CACHE_DIR"] = nothing_yet
        write(compare(arguments), arguments.output)


if __name__ == "__main__":
    main()
