r"""AutoAttack beside torchattacks': robust accuracy on the same model and images, and throughput.

    python -m benchmarks.autoattack --root data/cifar10-jpeg --model vgg_small --weights FILE \
        --output autoattack.json

Whole (``autoattack``: APGD-CE, APGD-T, FAB-T, Square, each on what is left) and its first attack
alone, at the paper's budgets. All images are looked at, those that the model gets wrong count as
fallen. What comes back is judged by the model in float32: inside the ball, and by its verdict.
"""

from __future__ import annotations

import argparse
import sys
from functools import partial
from typing import Any

import torch
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
    parser_of,
    report_file,
    write,
)
from robusttrain import Rng, fast_copy
from robusttrain.attacks import Linf
from robusttrain.config.attacks import attack_nodes, scenario
from robusttrain.evaluation import verdicts, wilson

#: Steps of each attack in the paper; torchattacks' AutoAttack leaves its members at their own
#: default, 10.
STEPS = 100


def apgd_ce(model: nn.Module, epsilon: float) -> Any:
    """torchattacks' APGD with the paper's steps."""
    import torchattacks  # here, since ours run without it

    return torchattacks.APGD(model, eps=epsilon, steps=STEPS, loss="ce", rho=0.75)


def standard(model: nn.Module, epsilon: float) -> Any:
    """torchattacks' AutoAttack with the paper's steps."""
    import torchattacks

    attack = torchattacks.AutoAttack(model, eps=epsilon, version="standard")
    for member in attack._autoattack.attacks:
        if hasattr(member, "steps"):  # Square has queries, 5,000 as in the paper
            member.steps = STEPS
    return attack


#: Each attack of ours, and torchattacks' of the same budget.
PEERS = {"apgd-ce": apgd_ce, "autoattack": standard}
#: How far outside the ball rounding may carry an image.
ROUNDING = 1e-6


def contenders(side: str, arguments: argparse.Namespace) -> Contenders:
    """The attacks of one side, each a call without arguments that returns adversarial images."""
    model, images, labels = material(arguments)
    if side == "peers":
        compiled(model, arguments)
        return {
            f"{name} torchattacks": partial(PEERS[name](model, arguments.epsilon), images, labels)
            for name in arguments.attack
        }
    # As the evaluation does: images that are wrong already are left alone.
    right = model_right(model, images, labels)
    rng = Rng.for_images(0, torch.arange(len(images), device=images.device))
    nodes = attack_nodes(arguments.attack, [], arguments.epsilon)
    copy = fast_copy(model, torch.float32)
    compiled(copy.network, arguments)
    attacks = {name: scenario(node, name).attack for name, node in nodes.items()}

    def run(name: str) -> Tensor:
        chosen = images[right].contiguous(memory_format=torch.channels_last)
        adversarial = images.clone()
        adversarial[right] = attacks[name](copy, chosen, labels[right], rng[right])
        return adversarial

    return {f"{name} ours": partial(run, name) for name in arguments.attack}


def material(arguments: argparse.Namespace) -> tuple[nn.Module, Tensor, Tensor]:
    """The model, and test images with labels."""
    data, images, labels = load_images(arguments.root, arguments.images, device=arguments.device)
    model = network(arguments.model, arguments.weights, data, arguments.device)
    model.requires_grad_(False)
    return model, images, labels


def model_right(model: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
    """(B,) bool: which images the model gets right, on their device."""
    rng = Rng.for_images(0, torch.arange(len(images), device=images.device))
    return verdicts(model, images, labels, rng, 1).squeeze(1).to(images.device)


def compare(arguments: argparse.Namespace) -> dict[str, Any]:
    """One report: for each attack, both robust accuracies, how many verdicts differ, and
    throughput.
    """
    seconds, results, _ = interleave(contenders, arguments)
    model, images, labels = material(arguments)
    threat = Linf(arguments.epsilon)
    stands = {}
    for name, adversarial in results.items():
        adversarial = adversarial.to(images.device)
        inside = threat.distance(adversarial, images) <= arguments.epsilon + ROUNDING
        inside &= (adversarial.flatten(1) >= 0).all(dim=1) & (adversarial.flatten(1) <= 1).all(
            dim=1
        )
        stands[name] = model_right(
            model, torch.where(inside[:, None, None, None], adversarial, images), labels
        )

    def accuracy(which: Tensor) -> dict[str, Any]:
        rate = which.double().mean().item()
        return {
            "accuracy": round(rate, 4),
            "ci95": [round(end, 4) for end in wilson(rate, len(which))],
        }

    def beside(name: str) -> dict[str, Any]:
        mine, theirs = stands[f"{name} ours"], stands[f"{name} torchattacks"]
        return {
            "ours": accuracy(mine),
            "torchattacks": accuracy(theirs),
            "fell_to_ours_alone": int((theirs & ~mine).sum()),
            "fell_to_theirs_alone": int((mine & ~theirs).sum()),
            "throughput_relative_to_theirs": round(
                seconds[f"{name} torchattacks"] / seconds[f"{name} ours"], 2
            ),
        }

    named = ("model", "epsilon", "rounds", "memory")
    return {
        "command": "python -m benchmarks.autoattack " + " ".join(arguments.command),
        "machine": machine(arguments.device),
        **({"compiled": True} if arguments.compiled else {}),
        "images": len(images),
        **{name: getattr(arguments, name) for name in named},
        "clean": accuracy(model_right(model, images, labels)),
        "comparisons": {name: beside(name) for name in arguments.attack},
    }


def main() -> None:
    """Parse, compare, write."""
    parser = parser_of(__doc__)
    parser.add_argument("--attack", nargs="+", choices=list(PEERS), default=list(PEERS))
    parser.add_argument(
        "--rounds", type=int, default=0, help="timed rounds after a first one; 0 times the first"
    )
    parser.add_argument("--memory", choices=MEMORY, default="as-run", help=MEMORY_HELP)
    add_device(parser)
    parser.add_argument("--output", type=report_file, default="results/benchmarks/autoattack.json")
    arguments = parser.parse_args()
    arguments.command = sys.argv[1:]
    write(compare(arguments), arguments.output)


if __name__ == "__main__":
    main()
