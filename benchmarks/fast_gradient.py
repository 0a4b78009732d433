r"""FGSM, MI-FGSM, DI2-FGSM and M-DI2-FGSM beside torchattacks, on the same source, target, images
and budget.

    python -m benchmarks.fast_gradient --data imagenet --root data/imagenet-sample \
        --model efficientnet_lite0 \\
        --target efficientnet_lite2 --output fast_gradient.json
    python -m benchmarks.fast_gradient --root data/cifar10-jpeg --model vgg_small \
        --weights FILE --epsilon 0.031

Images are crafted on the source and judged in float32 by the source and, with ``--target``, by
another model; only images that all of them have right are attacked. torchattacks draws one resizing
for a whole batch and step, ours one for each image. Both resize to 0.9 of the side at least and pad
to the full side.
"""

from __future__ import annotations

import argparse
import sys
from functools import partial
from typing import Any

import torch
import torchattacks
from torch import Tensor, nn

from benchmarks.timing import (
    MEMORY,
    MEMORY_HELP,
    Contenders,
    interleave,
    load_images,
    machine,
    network,
    report_file,
    right_for_all,
    write,
)
from robusttrain import Rng, fast_copy
from robusttrain.attacks import Backprop, Diverse, Linf, MomentumSign, ProjectedGradient, Sign
from robusttrain.evaluation import verdicts, wilson

SMALLEST = 0.9
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
#: Name, momentum mu and probability p of input diversity [P2 section 3]; one step for FGSM.
FAMILY = {"fgsm": (0.0, 0.0), "mifgsm": (1.0, 0.0), "difgsm": (0.0, 0.5), "mdifgsm": (1.0, 0.5)}


def contenders(side: str, arguments: argparse.Namespace) -> Contenders:
    """The attacks of one side, each a call without arguments that returns adversarial images."""
    (model, *_), images, labels = material(arguments)
    epsilon, alpha, steps = arguments.epsilon, arguments.step_size, arguments.steps
    if side == "peers":

        def iterated(mu: float, p: float) -> Any:
            if p:
                return torchattacks.DIFGSM(
                    model, epsilon, alpha, steps, mu, SMALLEST, p, random_start=False
                )
            return torchattacks.MIFGSM(model, epsilon, alpha, steps, mu)

        attacks = {
            name: torchattacks.FGSM(model, epsilon) if name == "fgsm" else iterated(*given)
            for name, given in FAMILY.items()
        }
        return {
            f"{name} torchattacks": partial(attack, images, labels)
            for name, attack in attacks.items()
        }

    rng = Rng.for_images(0, torch.arange(len(images)))
    images = images.contiguous(memory_format=torch.channels_last)
    return {
        f"{name} ours {dtype}": partial(ours(name, arguments), copy, images, labels, rng)
        for dtype, copy in (
            (kind_name, fast_copy(model, kind)) for kind_name, kind in DTYPES.items()
        )
        for name in FAMILY
    }


def ours(name: str, arguments: argparse.Namespace) -> ProjectedGradient:
    """Our composition of an attack of the family."""
    mu, p = FAMILY[name]
    once = name == "fgsm"
    return ProjectedGradient(
        steps=1 if once else arguments.steps,
        step_size=arguments.epsilon if once else arguments.step_size,
        random_start=False,
        threat=Linf(arguments.epsilon),
        gradient=Diverse(p, SMALLEST, inner=Backprop()) if p else Backprop(),
        rule=MomentumSign(mu) if mu else Sign(),
    )


def material(arguments: argparse.Namespace) -> tuple[list[nn.Module], Tensor, Tensor]:
    """Source and target, and ``--images`` test images that both get right, with labels."""
    data, images, labels = load_images(arguments.root, 2 * arguments.images, arguments.data)
    models = [network(arguments.model, arguments.weights, data)]
    if arguments.target:
        models.append(network(arguments.target, arguments.target_weights, data))
    for model in models:
        # As a user of the peers would, who wants gradients of images alone
        for parameter in model.parameters():
            parameter.requires_grad_(False)
    return models, *right_for_all(models, images, labels, arguments.images)


def compare(arguments: argparse.Namespace) -> dict[str, Any]:
    """One report: for each attack and precision, our throughput relative to torchattacks', and
    success of both.
    """
    seconds, adversarial, _ = interleave(contenders, arguments)
    models, images, labels = material(arguments)
    judges = dict(zip(("source", "target"), models, strict=False))
    rng = Rng.for_images(0, torch.arange(len(images)))

    def success(name: str) -> dict[str, Any]:
        rates = {}
        for judge, model in judges.items():
            fell = ~verdicts(model, adversarial[name], labels, rng, 1).squeeze(1)
            rate = fell.double().mean().item()
            rates[judge] = {
                "value": round(rate, 4),
                "ci95": [round(end, 4) for end in wilson(rate, len(fell))],
            }
        return rates

    def beside(attack: str, dtype: str) -> dict[str, Any]:
        theirs, mine = f"{attack} torchattacks", f"{attack} ours {dtype}"
        return {
            "throughput_relative_to_theirs": round(seconds[theirs] / seconds[mine], 2),
            "their_success": success(theirs),
            "our_success": success(mine),
        }

    named = ("data", "model", "target", "epsilon", "step_size", "steps", "rounds", "memory")
    return {
        "command": "python -m benchmarks.fast_gradient " + " ".join(arguments.command),
        "machine": machine(),
        "images": len(images),
        **{name: getattr(arguments, name) for name in named},
        "comparisons": {
            attack: {dtype: beside(attack, dtype) for dtype in DTYPES} for attack in FAMILY
        },
    }


def main() -> None:
    """Parse, compare, write."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--root", required=True, help="folder of the data")
    parser.add_argument(
        "--data", choices=("imagefolder", "imagenet"), default="imagefolder", help="its layout"
    )
    parser.add_argument("--model", default="vgg_small", help="model preset of the source")
    parser.add_argument("--weights", help="its weights, if they do not come with it")
    parser.add_argument("--target", help="model preset of another model that judges")
    parser.add_argument("--target_weights", help="its weights")
    parser.add_argument(
        "--images", type=int, default=32, help="one batch of at most this many images"
    )
    parser.add_argument("--epsilon", type=float, default=15 / 255)
    parser.add_argument("--step_size", type=float, default=2 / 255)
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--memory", choices=MEMORY, default="as-run", help=MEMORY_HELP)
    parser.add_argument(
        "--output", type=report_file, default="results/benchmarks/fast_gradient.json"
    )
    arguments = parser.parse_args()
    arguments.command = sys.argv[1:]
    write(compare(arguments), arguments.output)


if __name__ == "__main__":
    main()
