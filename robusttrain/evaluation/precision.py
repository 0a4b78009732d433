"""In which precision attacks differentiate a classifier: what is fastest here, where rounding does not matter.

Verdicts are float32 passes whatever is chosen. bfloat16 is several times as fast as float32 on
processors with units for it, and many times as slow on others, so it is measured.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from robusttrain.core.processor import seconds_of
from robusttrain.defended import DefendedClassifier
from robusttrain.evaluation.engine import Scenario
from robusttrain.models import fast_copy
from robusttrain.rng import Rng

Precision = Literal["auto", "float32", "bfloat16"]
PRECISIONS = ("auto", "float32", "bfloat16")
#: Images of a measurement, and how much faster bfloat16 has to be: less is not worth its rounding.
IMAGES, WORTHWHILE = 16, 1.2


@dataclass(frozen=True)
class Speeds:
    """Seconds of one gradient with respect to the images, in either precision.

    Args:
        float32: seconds in float32.
        bfloat16: seconds in bfloat16.
    """

    float32: float
    bfloat16: float

    @property
    def faster(self) -> Literal["float32", "bfloat16"]:
        """Which of the two to take where rounding does not matter."""
        return "bfloat16" if self.bfloat16 * WORTHWHILE < self.float32 else "float32"

    def __str__(self) -> str:
        return f"a gradient in bfloat16 takes {self.bfloat16 / self.float32:.2g} times as long as in float32 here"


def measure_speeds(classifier: nn.Module, images: Tensor) -> Speeds:
    """Time one gradient of ``classifier`` in both precisions, on the images' device.

    Args:
        classifier: images (B, C, H, W) to logits; copied, not changed.
        images: what it takes, (B, C, H, W); at most 16 are used.
    """
    images = images[:IMAGES].detach().clone()

    def gradient(network: nn.Module, count: int) -> None:
        points = images[:count].clone().requires_grad_()
        loss = network(points).logsumexp(dim=1).sum()
        if loss.requires_grad:
            torch.autograd.grad(loss, points, allow_unused=True)

    with torch.inference_mode(False), torch.enable_grad(), torch.random.fork_rng(devices=[]):
        networks = [fast_copy(classifier, kind).to(images.device) for kind in (torch.float32, torch.bfloat16)]

        def speeds(count: int, rounds: int) -> Speeds:
            found = [
                seconds_of(lambda network=network: gradient(network, count), images.device, rounds)  # type: ignore[misc]
                for network in networks
            ]
            return Speeds(*found)

        # Without units for it bfloat16 is so slow that a whole measurement would be felt.
        first = speeds(1, rounds=1)
        return first if first.bfloat16 > 2 * first.float32 else speeds(IMAGES, rounds=3)


def measure_speeds_of(target: DefendedClassifier, images: Tensor, rng: Rng) -> Speeds:
    """`measure_speeds` of a target's classifier, on what it sees of images (B, C, H, W) with streams (B,)."""
    images, rng = images[:IMAGES], rng[torch.arange(min(IMAGES, len(images)), device=images.device)]
    if target.defense is not None:
        with torch.no_grad():
            images = target.defense(images, rng)
    return measure_speeds(target.classifier, images)


def choose(scenarios: Mapping[str, Scenario], fastest: str) -> dict[str, str]:
    """The precision of each attack: ``fastest`` for those that rounding leaves as strong, float32 for others."""
    return {name: fastest if scenario.attack.rounds_well else "float32" for name, scenario in scenarios.items()}
