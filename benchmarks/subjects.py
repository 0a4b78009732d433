"""What `benchmarks/on_gpu.sh` attacks: a network alone, and one behind g, on any device."""

from __future__ import annotations

import argparse

import torch
from torch import Tensor

import robusttrain
from benchmarks.timing import load_images, network
from robusttrain import DefendedClassifier, Rng
from robusttrain.config.attacks import scenarios
from robusttrain.defenses import AdversarialTransform
from robusttrain.evaluation import Scenario

#: Attacks of a network alone, and of one behind g.
ALONE = ("pgd", "apgd-ce", "fab-t", "square")
BEHIND_G = ("eot", "bpda-eot")


def add_subject(parser: argparse.ArgumentParser) -> None:
    """Options that say what is attacked, and where."""
    parser.add_argument(
        "--root", help="image folder with test/; by default embedded digits, with packaged models"
    )
    parser.add_argument(
        "--weights", help="of a vgg_small for these images, the network and f_b; needs --root"
    )
    parser.add_argument("--device", default="cpu", help="cpu, cuda, cuda:1, ...")
    parser.add_argument("--images", type=int, default=64)


def subject(
    arguments: argparse.Namespace, attack: str, device: str | torch.device
) -> tuple[DefendedClassifier, Tensor, Tensor, Rng]:
    """The target of an attack in float32, test images (B, C, H, W), labels and their streams."""
    data, images, labels = load_images(arguments.root, arguments.images, device=device)
    if arguments.root is None:
        target = robusttrain.load("digits-g" if attack in BEHIND_G else "digits-adversarial")
        assert isinstance(target, DefendedClassifier)
    else:
        f_b = network("vgg_small", arguments.weights, data)
        g = AdversarialTransform(f_b) if attack in BEHIND_G else None
        target = DefendedClassifier(g, network("vgg_small", arguments.weights, data))
    target.eval().requires_grad_(False).to(device)
    rng = Rng.for_images(0, torch.arange(len(images), device=device))
    return target, images.contiguous(memory_format=torch.channels_last), labels, rng


def shortened(attack: str, steps: int, draws: int, epsilon: float) -> Scenario:
    """An attack by name: so many steps, ten queries a step for Square, so many draws for EOT."""
    changes = [("square.queries", str(10 * steps)), (f"{attack}.gradient.draws", str(draws))]
    if attack != "square":
        changes[0] = (f"{attack}.steps", str(steps))
    if attack not in BEHIND_G:
        changes = changes[:1]
    return scenarios([attack], changes, epsilon)[attack]
