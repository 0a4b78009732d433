"""The adversarial transformation beside the straightforward loop.

    python -m benchmarks.transform --root data/cifar10-jpeg --weights FILE --output transform.json

The loop is how g is usually written: float32, the model as it was trained, ``backward()`` at every
step (which computes the gradients of all weights as well), the step and the projection written out.
"""

from __future__ import annotations

import argparse
import copy
import sys
from collections.abc import Callable
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.pgd import limit
from benchmarks.timing import (
    MEMORY,
    MEMORY_HELP,
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
from robusttrain import Rng, fast_copy
from robusttrain.attacks import Queried
from robusttrain.defenses import AdversarialTransform, Defense
from robusttrain.models.fast import FastModel


def straightforward(f_b: nn.Module, images: Tensor, radius: float, steps: int) -> Tensor:
    """g(x) by [P1 eq. 3] with ``backward()``; (B, C, H, W)."""
    with torch.no_grad():
        least_likely = f_b(images).argmin(dim=1)
    moving = images + torch.empty_like(images).uniform_(-radius, radius)
    for _ in range(steps):
        moving = moving.detach().requires_grad_()
        loss = F.cross_entropy(f_b(moving), least_likely, reduction="sum")
        f_b.zero_grad()
        loss.backward()
        assert moving.grad is not None
        moved = moving.detach() - radius / 6 * moving.grad.sign()
        moving = torch.min(torch.max(moved, images - radius), images + radius)
    return moving


def contenders(side: str, arguments: argparse.Namespace) -> Contenders:
    """g of one side, each a call without arguments that returns g(x)."""
    data, images, _ = load_images(arguments.root, arguments.images, device=arguments.device)
    f_b = network("vgg_small", arguments.weights, data, arguments.device)
    if side == "peers":
        compiled(f_b, arguments)
        return {
            "straightforward": lambda: straightforward(
                f_b, images, arguments.radius, arguments.steps
            )
        }
    rng = Rng.for_images(0, torch.arange(len(images), device=images.device))

    def g(precision: Literal["float32", "bfloat16"]) -> Callable[[], Tensor]:
        twin = copy.deepcopy(f_b)
        transform = AdversarialTransform(
            twin, None, arguments.radius, arguments.steps, precision=precision
        )
        compile_g(transform, arguments)
        return lambda: transform(images, rng)

    def bare(dtype: torch.dtype) -> Callable[[], Tensor]:
        copied = fast_copy(f_b, dtype)
        compiled(copied.network, arguments)
        with torch.no_grad():
            least_likely = f_b(images).argmin(dim=1)
        return lambda: limit(copied, images, least_likely, arguments.steps)

    own = {"ours float32": g("float32"), "ours bfloat16": g("bfloat16")}
    if not arguments.limit:
        return own
    return own | {
        "limit float32": bare(torch.float32),
        "limit bfloat16": bare(torch.bfloat16),
    }


def compile_g(transform: Defense | None, arguments: argparse.Namespace) -> None:
    """Compile f_b as g differentiates it, if ``--compiled`` asks for it."""
    if isinstance(transform, AdversarialTransform):
        queried = transform.differentiated()
        assert isinstance(queried, Queried)
        assert isinstance(queried.model, FastModel)
        compiled(queried.model.network, arguments)


def main() -> None:
    """Parse, compare, write."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--root", required=True, help="image folder with test/ or val/")
    parser.add_argument("--weights", required=True, help="of f_b, a vgg_small")
    parser.add_argument("--images", type=int, default=128, help="one batch of this many images")
    parser.add_argument("--steps", type=int, default=13)
    parser.add_argument("--radius", type=float, default=0.2)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--memory", choices=MEMORY, default="as-run", help=MEMORY_HELP)
    parser.add_argument(
        "--limit", action="store_true", help="the passes of g's steps alone, too (benchmarks.pgd)"
    )
    add_device(parser)
    parser.add_argument("--output", type=report_file, default="results/benchmarks/transform.json")
    arguments = parser.parse_args()
    seconds, results, _ = interleave(contenders, arguments)
    data, images, _ = load_images(arguments.root, arguments.images, device=arguments.device)
    loop_f_b = network("vgg_small", arguments.weights, data, arguments.device)
    with torch.no_grad():
        least_likely = loop_f_b(images).argmin(dim=1)
        reached = {
            name: F.cross_entropy(loop_f_b(transformed.to(images.device)), least_likely).item()
            for name, transformed in results.items()
        }
    report = {
        "command": "python -m benchmarks.transform " + " ".join(sys.argv[1:]),
        "machine": machine(arguments.device),
        **({"compiled": True} if arguments.compiled else {}),
        "images": len(images),
        "steps": arguments.steps,
        "radius": arguments.radius,
        "rounds": arguments.rounds,
        "memory": arguments.memory,
        "throughput_relative_to_straightforward": {
            name: round(seconds["straightforward"] / s, 2) for name, s in seconds.items()
        },
        "loss_towards_least_likely_class_reached": {
            name: round(loss, 4) for name, loss in reached.items()
        },
    }
    write(report, arguments.output)


if __name__ == "__main__":
    main()
