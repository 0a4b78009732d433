r"""DeepFool and C&W beside torchattacks and Foolbox, on the same model, images and budget.

    python -m benchmarks.minimal --root data/cifar10-jpeg --model vgg_small --weights FILE \
        --output minimal.json
    python -m benchmarks.minimal --data imagenet --root data/imagenet-sample \
        --model efficientnet_lite0

Only images that the model gets right are attacked. torchattacks' C&W has no search for c, so it
stands beside ours with one c; Foolbox's beside ours with the same number of searches. torchattacks'
DeepFool works on one image at a time and differentiates all classes; Foolbox's and ours take whole
batches and ``--classes`` classes. With a thousand classes it takes minutes an image: ``--alone 4``
gives it the first four, and compares times for an image. What comes back is judged by the model
itself in float32, whatever an attack ran in.

Each stops early by a rule of its own, so forward passes are counted, too: the peers' C&W may stop
long before its ``--cw_steps``, when the loss of the whole batch rises.
"""

from __future__ import annotations

import argparse
import sys
from functools import partial
from typing import Any

import foolbox
import torch
import torchattacks
from torch import Tensor, nn

from benchmarks.timing import (
    MEMORY,
    MEMORY_HELP,
    Contenders,
    count_images,
    interleave,
    load_images,
    machine,
    network,
    report_file,
    right_for_all,
    write,
)
from robusttrain import Rng, fast_copy
from robusttrain.attacks import L2, CarliniWagner, DeepFool
from robusttrain.evaluation import verdicts

WIDE = L2(1000.0)
#: Each peer beside ours: what is compared with what.
PAIRS = {
    "deepfool torchattacks": "deepfool ours",
    "deepfool foolbox": "deepfool ours",
    "cw, one c, torchattacks": "cw, one c, ours",
    "cw foolbox": "cw ours",
}
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


def contenders(side: str, arguments: argparse.Namespace) -> Contenders:
    """The attacks of one side, each a call without arguments that returns adversarial images."""
    model, images, labels = material(arguments)
    steps, searches, rate = arguments.cw_steps, arguments.searches, arguments.learning_rate
    if side == "peers":
        count_images(model)
        wrapped = foolbox.PyTorchModel(model, bounds=(0, 1), device="cpu")
        deepfool = foolbox.attacks.L2DeepFoolAttack(
            steps=arguments.steps, candidates=arguments.classes
        )
        cw = foolbox.attacks.L2CarliniWagnerAttack(
            binary_search_steps=searches,
            steps=steps,
            stepsize=rate,
            initial_const=arguments.initial_c,
        )
        one_at_a_time = torchattacks.DeepFool(model, steps=arguments.steps)
        one_c = torchattacks.CW(model, c=arguments.one_c, steps=steps, lr=rate)
        return {
            "deepfool torchattacks": lambda: one_at_a_time(
                images[: arguments.alone], labels[: arguments.alone]
            ),
            "deepfool foolbox": lambda: deepfool(wrapped, images, labels, epsilons=None)[1],
            "cw, one c, torchattacks": lambda: one_c(images, labels),
            "cw foolbox": lambda: cw(wrapped, images, labels, epsilons=None)[1],
        }
    ours = {
        "deepfool ours": DeepFool(arguments.steps, arguments.classes, threat=WIDE),
        "cw, one c, ours": CarliniWagner(steps, rate, 0.0, 1, arguments.one_c, threat=WIDE),
        "cw ours": CarliniWagner(steps, rate, 0.0, searches, arguments.initial_c, threat=WIDE),
    }
    rng = Rng.for_images(0, torch.arange(len(images)))
    images = images.contiguous(memory_format=torch.channels_last)
    copies = {name: fast_copy(model, dtype) for name, dtype in DTYPES.items()}
    for copy in copies.values():
        count_images(copy)
    return {
        f"{name} {dtype}": partial(attack, copy, images, labels, rng)
        for dtype, copy in copies.items()
        for name, attack in ours.items()
    }


def material(arguments: argparse.Namespace) -> tuple[nn.Module, Tensor, Tensor]:
    """The model, and ``--images`` test images that it gets right, with labels."""
    data, images, labels = load_images(arguments.root, 2 * arguments.images, arguments.data)
    model = network(arguments.model, arguments.weights, data)
    for (
        parameter
    ) in model.parameters():  # as a user of the peers would, who wants gradients of images alone
        parameter.requires_grad_(arguments.peers_keep_parameter_gradients)
    return model, *right_for_all([model], images, labels, arguments.images)


def judged(
    model: nn.Module, images: Tensor, labels: Tensor, adversarial: Tensor
) -> tuple[Tensor, Tensor]:
    """(B,) bool: which images fell, and (B,): how far from the clean ones they are."""
    rng = Rng.for_images(0, torch.arange(len(images)))
    # Foolbox returns black images where it found none.
    nothing = adversarial.flatten(1).amax(dim=1) == 0
    adversarial = torch.where(nothing.view(-1, 1, 1, 1), images, adversarial)
    fooled = ~verdicts(model, adversarial, labels, rng, 1).squeeze(1)
    return fooled, WIDE.distance(adversarial.float(), images)


def compare(arguments: argparse.Namespace) -> dict[str, Any]:
    """One report: for each peer and precision, our throughput relative to its, success, and
    distances of both.
    """
    seconds, adversarial, seen = interleave(contenders, arguments)
    model, images, labels = material(arguments)
    counts = {name: len(images_of) for name, images_of in adversarial.items()}
    outcomes = {
        name: judged(model, images[: counts[name]], labels[: counts[name]], images_of)
        for name, images_of in adversarial.items()
    }

    def beside(peer: str, ours: str) -> dict[str, float]:
        (they_fell, their_distance), whole = outcomes[peer], outcomes[ours]
        fell, distance = (each[: counts[peer]] for each in whole)
        both = they_fell & fell
        relative = seconds[peer] / counts[peer] / (seconds[ours] / counts[ours])
        their_passes, our_passes = seen[peer] / counts[peer], seen[ours] / counts[ours]
        return {
            "their_images": counts[peer],
            "throughput_relative_to_theirs": round(relative, 2),
            "their_forward_passes_for_an_image": round(their_passes, 1),
            "our_forward_passes_for_an_image": round(our_passes, 1),
            "throughput_in_passes_relative_to_theirs": round(
                relative * our_passes / their_passes, 2
            ),
            "their_success": round(they_fell.float().mean().item(), 4),
            "our_success": round(fell.float().mean().item(), 4),
            "images_that_fell_to_both": int(both.sum()),
            "their_median_distance_on_those": round(their_distance[both].median().item(), 4),
            "our_median_distance_on_those": round(distance[both].median().item(), 4),
        }

    named = (
        "model",
        "steps",
        "classes",
        "cw_steps",
        "searches",
        "initial_c",
        "one_c",
        "learning_rate",
        "rounds",
    )
    return {
        "command": "python -m benchmarks.minimal " + " ".join(arguments.command),
        "machine": machine(),
        "images": len(images),
        **{
            name: getattr(arguments, name)
            for name in (*named, "memory", "peers_keep_parameter_gradients")
        },
        "comparisons": {
            peer: {dtype: beside(peer, f"{ours} {dtype}") for dtype in DTYPES}
            for peer, ours in PAIRS.items()
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
    parser.add_argument("--model", default="vgg_small", help="model preset")
    parser.add_argument("--weights", help="its weights")
    parser.add_argument(
        "--images", type=int, default=32, help="one batch of at most this many images"
    )
    parser.add_argument("--alone", type=int, help="images for torchattacks' DeepFool; default: all")
    parser.add_argument("--steps", type=int, default=50, help="DeepFool's")
    parser.add_argument("--classes", type=int, default=10, help="DeepFool's")
    parser.add_argument("--cw_steps", type=int, default=100, help="Adam's steps for each c")
    parser.add_argument("--searches", type=int, default=9, help="values of c")
    parser.add_argument("--initial_c", type=float, default=1e-3)
    parser.add_argument(
        "--one_c", type=float, default=1.0, help="c where there is no search for it"
    )
    parser.add_argument("--learning_rate", type=float, default=0.01)
    parser.add_argument(
        "--rounds", type=int, default=3, help="timed rounds after a first one; 0 times the first"
    )
    parser.add_argument("--memory", choices=MEMORY, default="as-run", help=MEMORY_HELP)
    parser.add_argument(
        "--peers_keep_parameter_gradients",
        action="store_true",
        help="leave requires_grad on, as most callers do",
    )
    parser.add_argument("--output", type=report_file, default="results/benchmarks/minimal.json")
    arguments = parser.parse_args()
    arguments.command = sys.argv[1:]
    write(compare(arguments), arguments.output)


if __name__ == "__main__":
    main()
