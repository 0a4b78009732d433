r"""PGD beside torchattacks, Foolbox and the bare limit, on the same model, images and budget.

    python -m benchmarks.pgd --root data/cifar10-jpeg --model vgg_small --weights FILE \
        --output pgd.json

The limit is what no implementation of these steps can beat with this network: for each step, one
forward pass and one backward pass to the input, nothing else, in the same dtype and memory format
as ours.
"""

from __future__ import annotations

import argparse
import importlib.util
import sys
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

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
from robusttrain.attacks import Linf, ProjectedGradient
from robusttrain.evaluation import verdicts


def limit(model: nn.Module, images: Tensor, labels: Tensor, steps: int) -> Tensor:
    """``steps`` times one forward and one input-gradient pass."""
    images = images.contiguous(memory_format=torch.channels_last).requires_grad_()
    for _ in range(steps):
        loss = F.cross_entropy(model(images), labels, reduction="none")
        torch.autograd.grad(loss.sum(), images)
    return images.detach()


def contenders(side: str, arguments: argparse.Namespace) -> Contenders:
    """PGD of one side, each a call without arguments that returns adversarial images."""
    model, images, labels = material(arguments)
    steps, epsilon, step_size = arguments.steps, arguments.epsilon, arguments.epsilon / 4
    if side == "peers":
        import torchattacks

        compiled(model, arguments)
        theirs = torchattacks.PGD(
            model, eps=epsilon, alpha=step_size, steps=steps, random_start=True
        )
        peers: Contenders = {"torchattacks": lambda: theirs(images, labels)}
        if importlib.util.find_spec("foolbox"):
            peers["foolbox"] = foolboxes(model, images, labels, arguments)
        return peers
    ours = ProjectedGradient(steps=steps, step_size=step_size, threat=Linf(epsilon))
    f32, bf16 = (fast_copy(model, dtype) for dtype in (torch.float32, torch.bfloat16))
    for copy in (f32, bf16):
        compiled(copy.network, arguments)
    rng = Rng.for_images(0, torch.arange(len(images), device=images.device))
    images = images.contiguous(memory_format=torch.channels_last)
    return {
        "ours float32": lambda: ours(f32, images, labels, rng),
        "limit float32": lambda: limit(f32, images, labels, steps),
        "ours bfloat16": lambda: ours(bf16, images, labels, rng),
        "limit bfloat16": lambda: limit(bf16, images, labels, steps),
    }


def foolboxes(
    model: nn.Module, images: Tensor, labels: Tensor, arguments: argparse.Namespace
) -> Callable[[], Tensor]:
    """The same attack by Foolbox."""
    import foolbox

    wrapped = foolbox.PyTorchModel(model, bounds=(0, 1), device=images.device)
    attack = foolbox.attacks.LinfPGD(
        abs_stepsize=arguments.epsilon / 4, steps=arguments.steps, random_start=True
    )

    def run() -> Tensor:
        clipped: Tensor = attack(wrapped, images, labels, epsilons=arguments.epsilon)[1]
        return clipped

    return run


def material(arguments: argparse.Namespace) -> tuple[nn.Module, Tensor, Tensor]:
    """The model, and the images and labels to attack."""
    data, images, labels = load_images(arguments.root, arguments.images, device=arguments.device)
    model = network(arguments.model, arguments.weights, data, arguments.device)
    for (
        parameter
    ) in model.parameters():  # as a user of the peers would, who wants gradients of images alone
        parameter.requires_grad_(arguments.peers_keep_parameter_gradients)
    return model, images, labels


def compare(arguments: argparse.Namespace) -> dict[str, Any]:
    """One report: seconds relative to torchattacks' and to the limit's, and robust accuracy, by
    contender.
    """
    seconds, adversarial, _ = interleave(contenders, arguments)
    model, images, labels = material(arguments)
    rng = Rng.for_images(0, torch.arange(len(images), device=images.device))
    right = {
        name: verdicts(model, images_of.to(images.device), labels, rng, 1).float().mean().item()
        for name, images_of in adversarial.items()
    }
    return {
        "command": "python -m benchmarks.pgd " + " ".join(arguments.command),
        "machine": machine(arguments.device),
        **({"compiled": True} if arguments.compiled else {}),
        "model": arguments.model,
        "images": len(images),
        "steps": arguments.steps,
        "epsilon": arguments.epsilon,
        "rounds": arguments.rounds,
        "memory": arguments.memory,
        "time_relative_to_torchattacks": {
            name: round(s / seconds["torchattacks"], 3) for name, s in seconds.items()
        },
        "throughput_relative_to_torchattacks": {
            name: round(seconds["torchattacks"] / s, 2)
            for name, s in seconds.items()
            if "limit" not in name
        },
        "time_relative_to_limit": {
            dtype: round(seconds[f"ours {dtype}"] / seconds[f"limit {dtype}"], 3)
            for dtype in ("float32", "bfloat16")
        },
        "accuracy": {
            "clean": round(right["limit float32"], 4),
            **{name: round(share, 4) for name, share in right.items() if "limit" not in name},
        },
    }


def main() -> None:
    """Parse, compare, write."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--root", required=True, help="image folder with test/ or val/")
    parser.add_argument("--model", default="vgg_small", help="model preset")
    parser.add_argument("--weights", help="its weights")
    parser.add_argument("--images", type=int, default=128, help="one batch of this many images")
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--epsilon", type=float, default=0.031)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--memory", choices=MEMORY, default="as-run", help=MEMORY_HELP)
    parser.add_argument(
        "--peers_keep_parameter_gradients",
        action="store_true",
        help="leave requires_grad on, as most callers do",
    )
    add_device(parser)
    parser.add_argument("--output", type=report_file, default="results/benchmarks/pgd.json")
    arguments = parser.parse_args()
    arguments.command = sys.argv[1:]
    write(compare(arguments), arguments.output)


if __name__ == "__main__":
    main()
