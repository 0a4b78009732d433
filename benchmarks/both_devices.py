"""Do attacks on two devices give the same verdicts, image by image, at the same seed?

    python -m benchmarks.both_devices --device cuda --output verdicts.json

The same attack runs once on the CPU and once on ``--device``, each on the float32 copy that
evaluations attack, in full float32, as they do (``--tf32``: as torch has it otherwise on a GPU).
Each device then judges what its own attack made. Where a verdict differs, both
margins stand in the report: the logit of the label minus the largest other one, mean over draws. A
margin near 0 on both is rounding; another is a fault.
"""

from __future__ import annotations

import argparse
import sys
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor

from benchmarks.subjects import ALONE, BEHIND_G, add_subject, shortened, subject
from benchmarks.timing import machine, report_file, timed, write
from robusttrain.attacks import Queried
from robusttrain.core.repeatable import repeatable
from robusttrain.evaluation import verdicts


def margins(model: Queried, images: Tensor, labels: Tensor, rng: Any, draws: int) -> Tensor:
    """(B, draws): the label's logit minus the largest other one, on the CPU."""
    each = []
    with torch.no_grad():
        for draw in range(draws):
            logits = model(images, rng.fold(draw)).float()
            own = logits.gather(1, labels[:, None])
            others = logits.scatter(1, labels[:, None], -torch.inf)
            each.append((own.squeeze(1) - others.amax(dim=1)).cpu())
    return torch.stack(each, dim=1)


def differences(right: tuple[Tensor, Tensor], margin: tuple[Tensor, Tensor]) -> dict[str, Any]:
    """Where verdicts of two devices differ.

    Args:
        right: verdicts (B, draws) bool of the CPU and of the other device.
        margin: margins (B, draws) of both.
    """
    differ = right[0] != right[1]
    return {
        "verdicts": differ.numel(),
        "verdicts_that_differ": int(differ.sum()),
        "images_that_differ": int(differ.any(dim=1).sum()),
        "by_image": [
            {
                "image": int(image),
                "right": [round(each[image].double().mean().item(), 4) for each in right],
                "margin": [round(each[image].double().mean().item(), 6) for each in margin],
            }
            for image in differ.any(dim=1).nonzero().flatten()
        ],
    }


def one_device(
    arguments: argparse.Namespace, name: str, device: str
) -> tuple[Tensor, Tensor, Tensor, float]:
    """Adversarial images, verdicts and margins (all on the CPU) of one attack, and its seconds."""
    target, images, labels, rng = subject(arguments, name, device)
    scenario = shortened(name, arguments.steps, arguments.draws, arguments.epsilon)
    source = scenario.source(target.fast(torch.float32))
    with nullcontext() if arguments.tf32 else repeatable():
        seconds, adversarial = timed(lambda: scenario.attack(source, images, labels, rng))
    draws = arguments.draws if name in BEHIND_G else 1
    judged = rng.fold(1)  # streams that the attack has not seen
    right = verdicts(target, adversarial, labels, judged, draws)
    margin = margins(Queried.of(target), adversarial, labels, judged, draws)
    return adversarial.cpu(), right, margin, seconds


def compare(arguments: argparse.Namespace) -> dict[str, Any]:
    """One report: for each attack, what differs between the CPU and the device."""
    rows = {}
    for name in arguments.attack:
        there, here = (one_device(arguments, name, each) for each in (arguments.device, "cpu"))
        rows[name] = {
            **differences((here[1], there[1]), (here[2], there[2])),
            "largest_distance_of_a_pixel": round((here[0] - there[0]).abs().max().item(), 8),
            "right": [round(each[1].double().mean().item(), 4) for each in (here, there)],
            "seconds": [round(each[3], 3) for each in (here, there)],
        }
    return {
        "command": "python -m benchmarks.both_devices " + " ".join(sys.argv[1:]),
        "machine": machine(arguments.device),
        "pairs_are": ["cpu", arguments.device],
        "tf32": arguments.tf32,
        "images": arguments.images,
        "steps": arguments.steps,
        "draws": arguments.draws,
        "epsilon": arguments.epsilon,
        "attacks": rows,
    }


def main() -> None:
    """Parse, compare, write."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_subject(parser)
    every = [*ALONE, *BEHIND_G]
    parser.add_argument("--attack", nargs="+", choices=every, default=every)
    parser.add_argument("--steps", type=int, default=20, help="Square has ten queries a step")
    parser.add_argument("--draws", type=int, default=5, help="of EOT, and of verdicts behind g")
    parser.add_argument("--epsilon", type=float, default=0.031)
    parser.add_argument(
        "--tf32", action="store_true", help="attacks compute as torch does by default on a GPU"
    )
    parser.add_argument(
        "--output", type=report_file, default="results/benchmarks/both_devices.json"
    )
    arguments = parser.parse_args()
    write(compare(arguments), arguments.output)


if __name__ == "__main__":
    main()
