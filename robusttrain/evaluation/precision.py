"""The precision in which attacks differentiate a classifier: the fastest on this machine, where
rounding does not matter.

Verdicts are float32 passes in any case. bfloat16 is several times as fast as float32 on processors
with units for it, and many times as slow on others. So its speed is measured.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Literal

import torch
from torch import Tensor, nn

from robusttrain.attacks import CrossEntropy, prepared
from robusttrain.attacks.parts.differentiation import input_gradients, of_order_one
from robusttrain.core.processor import seconds_of, telling_size
from robusttrain.core.rng import Rng
from robusttrain.evaluation.scenario import Scenario
from robusttrain.models import fast_copy
from robusttrain.models.declared import answer
from robusttrain.models.defended import DefendedClassifier

Precision = Literal["auto", "float32", "bfloat16"]
PRECISIONS = ("auto", "float32", "bfloat16")
#: How much faster bfloat16 has to be to be worth its rounding, and how close its gradients have to
#: be to exact ones, as a median cosine over the images.
WORTHWHILE, CLOSE = 1.2, 0.95


@dataclass(frozen=True)
class Speeds:
    """How long a gradient with respect to the images takes in each precision, and how well both
    agree.

    Args:
        float32: seconds in float32.
        bfloat16: seconds in bfloat16; infinite where the model fails in it.
        cosine: between the two gradients, the median over images.
    """

    float32: float
    bfloat16: float
    cosine: float = 1.0

    @property
    def better(self) -> Literal["float32", "bfloat16"]:
        """Which of the two to take for attacks that follow gradients."""
        fast = self.bfloat16 * WORTHWHILE < self.float32
        return "bfloat16" if fast and self.cosine >= CLOSE else "float32"

    def __str__(self) -> str:
        if math.isinf(self.bfloat16):
            return "the model fails in bfloat16"
        ratio = f"{self.bfloat16 / self.float32:.2g}"
        little = self.better == "float32" and self.bfloat16 < self.float32
        gain = ", too little for its rounding" if little and self.cosine >= CLOSE else ""
        return (
            f"a gradient in bfloat16 takes {ratio} times as long as in float32 here{gain}, at a"
            f" cosine of {self.cosine:.2f} between them"
        )


def away(network: nn.Module, images: Tensor) -> Tensor:
    """(B, C, H, W): the gradient of the cross entropy of each image's likeliest class, of order
    one: a network that is sure has a tiny one, and its direction is what is compared.

    Args:
        network: images to logits.
        images: (B, C, H, W).
    """

    def losses(points: Tensor) -> list[Tensor]:
        logits = answer(network, points, None)
        return [CrossEntropy()(logits, logits.detach().argmax(dim=1))]

    ((_, slope),) = input_gradients(losses, images.clone())
    return torch.zeros_like(images) if slope is None else of_order_one(slope)[0]


def measure_speeds(classifier: nn.Module, images: Tensor) -> Speeds:
    """Compare gradients of ``classifier`` in both precisions, on the images' device.

    Args:
        classifier: images (B, C, H, W) to logits; copied, not changed.
        images: its inputs, (B, C, H, W); on a CPU at most 16 of them are used.
    """
    images = images[: telling_size(len(images), images.device)].detach().clone()

    with torch.inference_mode(False), torch.enable_grad(), torch.random.fork_rng(devices=[]):
        types = (torch.float32, torch.bfloat16)
        networks = [fast_copy(classifier, kind).to(images.device) for kind in types]

        def speeds(count: int, rounds: int) -> Speeds:
            seconds, gradients = [], []
            for network in networks:
                call = partial(away, network, images[:count])
                try:
                    with prepared(network):
                        seconds.append(seconds_of(call, images.device, rounds))
                        torch.manual_seed(0)  # a network that draws draws the same in both
                        gradients.append(call().flatten(1).float())
                except (TypeError, RuntimeError):
                    if not seconds:  # it fails in float32, too
                        raise
                    # Numpy, and other people's kernels, know no bfloat16
                    return Speeds(seconds[0], math.inf, math.nan)
            cosine = torch.cosine_similarity(gradients[0], gradients[1]).nanmedian().item()
            return Speeds(seconds[0], seconds[1], cosine)

        # Without units for it bfloat16 is so slow that one image has to suffice.
        first = speeds(1, rounds=1)
        return first if first.bfloat16 > 2 * first.float32 else speeds(len(images), rounds=3)


def measure_speeds_of(target: DefendedClassifier, images: Tensor, rng: Rng) -> Speeds:
    """`measure_speeds` of a target's classifier, on its inputs for images (B, C, H, W) with streams
    (B,).
    """
    size = telling_size(len(images), images.device)
    images, rng = images[:size], rng[torch.arange(size, device=images.device)]
    if target.defense is not None:
        with torch.no_grad():
            images = target.defense(images, rng)
    return measure_speeds(target.classifier, images)


def choose(scenarios: Mapping[str, Scenario], fastest: str) -> dict[str, str]:
    """The precision of each attack: ``fastest`` for attacks that rounding leaves as strong, float32
    for others.
    """
    return {
        name: fastest if scenario.attack.rounds_well else "float32"
        for name, scenario in scenarios.items()
    }


def asked_for(precision: str, scenarios: Mapping[str, Scenario]) -> dict[str, str]:
    """The precision of each attack where one was asked for: that one, and float32 for attacks that
    differentiate nothing and live on small differences between answers (of 146 images Square left
    79 in float32 and 99 in bfloat16, `docs/processors.md`).
    """
    return {
        name: precision if scenario.attack.cost().gradients else "float32"
        for name, scenario in scenarios.items()
    }


def weakened(precisions: Mapping[str, str], scenarios: Mapping[str, Scenario]) -> list[str]:
    """The attacks that differentiate in bfloat16 although they feel its rounding."""
    return [
        name
        for name, kind in precisions.items()
        if kind == "bfloat16" and not scenarios[name].attack.rounds_well
    ]
