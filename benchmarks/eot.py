"""EOT and the unrolled g: what they cost beside the bare evaluation, in time and in memory.

    python -m benchmarks.eot --root data/cifar10-jpeg --weights FILE --output eot.json

Time: one gradient evaluation of BPDA-I with EOT (`bpda-eot-paper` with fewer draws and one step:
    both only repeat it)
beside one plain one: f_a(g(x)) forward and f_a backward on the same batch, interleaved. Memory: the
peak of a process of its own, above what it held before the attack, with many and with few draws,
and of the unrolled g with N = 13 and 1.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.memory import peak, peak_here
from benchmarks.timing import (
    Contenders,
    add_device,
    compiled,
    interleave,
    load_images,
    machine,
    network,
    report_file,
    write,
)
from benchmarks.transform import compile_g
from robusttrain import Rng
from robusttrain.attacks import (
    Average,
    IdentityBackward,
    ProjectedGradient,
    UnrolledTransform,
    call_model,
)
from robusttrain.defenses import AdversarialTransform
from robusttrain.models.defended import DefendedClassifier


def material(
    arguments: argparse.Namespace, steps: int
) -> tuple[DefendedClassifier, Tensor, Tensor, Rng]:
    """f_a(g(.)) with a g of ``steps`` steps, ready for attacks, and a batch with its streams."""
    device, dtype = arguments.device, getattr(torch, arguments.precision)
    data, images, labels = load_images(arguments.root, arguments.images, device=device)
    f_b = network("vgg_small", arguments.weights, data, device)
    g = AdversarialTransform(f_b, steps=steps, precision=arguments.precision)
    target = DefendedClassifier(g, network(arguments.model, None, data, device)).fast(dtype)
    compile_g(g, arguments)
    compiled(target.classifier.network, arguments)  # type: ignore[arg-type]
    return target, images, labels, Rng.for_images(0, torch.arange(len(images), device=device))


def attack(draws: int) -> ProjectedGradient:
    """One step of `bpda-eot-paper`, with this many draws."""
    return ProjectedGradient(1, 0.002, random_start=False, gradient=Average(draws))


def contenders(side: str, arguments: argparse.Namespace) -> Contenders:
    """EOT with ``--timed_draws`` draws on our side; on the other, as many plain evaluations, one
    after the other.
    """
    target, images, labels, rng = material(arguments, 13)
    source = IdentityBackward()(target)

    def plain() -> Tensor:
        for draw in range(arguments.timed_draws):
            points = images.clone().requires_grad_()
            loss = F.cross_entropy(
                call_model(source, points, rng.fold(draw)), labels, reduction="sum"
            )
            torch.autograd.grad(loss, points)
        return images

    if side == "peers":
        return {"plain": plain}
    return {"eot": lambda: attack(arguments.timed_draws)(source, images, labels, rng)}


def prepared_attack(case: str, number: int, arguments: argparse.Namespace) -> Callable[[], Tensor]:
    """One case: "eot" with ``number`` draws, or "unrolled" with N = ``number``."""
    target, images, labels, rng = material(arguments, number if case == "unrolled" else 13)
    with torch.no_grad():
        call_model(target, images[:1], rng[:1])  # loads what every attack loads
    if case == "unrolled":
        return lambda: ProjectedGradient(1, 0.002, random_start=False)(
            UnrolledTransform()(target), images, labels, rng
        )
    return lambda: attack(number)(IdentityBackward()(target), images, labels, rng)


def needed(case: str, number: int, arguments: argparse.Namespace) -> float:
    """MiB that such an attack needs at its largest, beside the models."""
    if torch.device(arguments.device).type == "cpu":
        return peak(prepared_attack, case, number, arguments)
    return peak_here(prepared_attack(case, number, arguments), arguments.device)


def main() -> None:
    """Parse, measure, write."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--root", required=True, help="image folder with test/ or val/")
    parser.add_argument("--weights", required=True, help="of f_b, a vgg_small")
    parser.add_argument("--model", default="resnet_small", help="model preset of f_a (untrained)")
    parser.add_argument("--images", type=int, default=100, help="one batch of this many images")
    parser.add_argument(
        "--precision", choices=("float32", "bfloat16"), default="float32", help="of g and f_a"
    )
    parser.add_argument("--timed_draws", type=int, default=6, help="draws of the timed EOT step")
    parser.add_argument("--draws", type=int, default=500, help="many draws, for memory")
    parser.add_argument("--few_draws", type=int, default=20, help="few draws, for memory")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument(
        "--memory",
        choices=("kept", "system"),
        default="kept",
        help="see benchmarks.pgd; timing only",
    )
    add_device(parser)
    parser.add_argument("--output", type=report_file, default="results/benchmarks/eot.json")
    arguments = parser.parse_args()
    seconds, _, _ = interleave(contenders, arguments)
    numbers = {"eot": (arguments.few_draws, arguments.draws), "unrolled": (1, 13)}
    mib: dict[str, dict[str, float]] = {
        case: {str(number): needed(case, number, arguments) for number in given}
        for case, given in numbers.items()
    }

    def growth(case: str) -> float:
        few, many = mib[case].values()
        return round(many / few, 3)

    report: dict[str, Any] = {
        "command": "python -m benchmarks.eot " + " ".join(sys.argv[1:]),
        "machine": machine(arguments.device),
        **({"compiled": True} if arguments.compiled else {}),
        "images": arguments.images,
        "precision": arguments.precision,
        "time_of_one_gradient_evaluation_relative_to_plain": round(
            seconds["eot"] / seconds["plain"], 3
        ),
        "peak_mib_above_start": {
            case: {key: round(value) for key, value in row.items()} for case, row in mib.items()
        },
        "peak_with_many_draws_relative_to_few": growth("eot"),
        "peak_of_unrolled_13_steps_relative_to_1": growth("unrolled"),
    }
    write(report, arguments.output)


if __name__ == "__main__":
    main()
