"""A function h in the place of g: all the way, or for the backward pass alone."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from torch import Tensor, nn

from robusttrain.attacks.asking import SourceModel
from robusttrain.attacks.sources.basic import Reader, Source
from robusttrain.attacks.sources.forward_of import ForwardOf
from robusttrain.attacks.sources.surrogates import names_file, unopened
from robusttrain.core.checked import checked
from robusttrain.core.errors import UserError
from robusttrain.core.rng import Rng
from robusttrain.models.declared import says_random
from robusttrain.models.defended import DefendedClassifier, classified
from robusttrain.models.defense import Defense

#: What runs forward.
Forward = Literal["h", "g"]


class _StoodIn(SourceModel):
    def __init__(self, network: nn.Module, classifier: nn.Module) -> None:
        super().__init__()
        self.network, self.classifier = network, classifier
        self.random = says_random(classifier) or _says_random(network)

    def forward(self, images: Tensor, rng: Rng | None = None) -> Tensor:
        return classified(self.classifier, _stand_in(self.network, images, rng), rng)


def _says_random(network: nn.Module) -> bool:
    return isinstance(network, Defense) and network.random


def _stand_in(network: nn.Module, images: Tensor, rng: Rng | None) -> Tensor:
    """h(images); if h is a `Defense`, with the streams that it would have in g's place."""
    answer: Tensor = network(images, rng) if isinstance(network, Defense) else network(images)
    return answer


def _stood_for(target: DefendedClassifier, source: Source) -> Defense:
    """The target's defense; UserError if the target has none."""
    if target.defense is None:
        name = type(source).__name__
        raise UserError(f"source {name}: the target has no defense that h could stand for")
    return target.defense


class _BackwardOf(ForwardOf):
    def __init__(self, g: Defense, network: nn.Module) -> None:
        super().__init__(g)
        self.network, self.random = network, g.random or _says_random(network)

    def backward(self, images: Tensor, rng: Rng) -> Tensor:
        return _stand_in(self.network, images, rng)

    def misfit(self, images: Tensor, transformed: Tensor, instead: Tensor) -> str:
        return (
            f"the stand-in h turns images into {tuple(instead.shape[1:])} and the defense into"
            f" {tuple(transformed.shape[1:])}, so h's derivative cannot stand for the defense's"
        )


@checked
@dataclass(frozen=True)
class StandIn(Source):
    """f_a(h(x)), with a differentiable h in the place of g [P1 3.3, 4.1]; or BPDA with h: forward
    through g, backward through h (Athalye et al. 2018, section 4.1).

    Args:
        network: h, images to images: a network, for example a denoiser of one pass, or another
            `Defense`.
        forward: "h", or "g" for BPDA.
    """

    network: nn.Module
    forward: Forward = "h"
    knows = "classifier, defense, data"

    @property
    def same_forward(self) -> bool:  # type: ignore[override]
        return self.forward == "g"

    def __call__(self, target: DefendedClassifier) -> nn.Module:
        g = _stood_for(target, self)
        if self.forward == "g":
            return DefendedClassifier(_BackwardOf(g, self.network), target.classifier)
        return _StoodIn(self.network, target.classifier)


@checked
@dataclass(frozen=True)
class Reparameterization(Source):
    """f_a(h(x)), with a differentiable h that was trained to be close to g [P1 3.3, 4.1]; or BPDA
    with h.

    Args:
        path: file with h, from ``train.py --training reparameterization``.
        forward: "h", or "g" for BPDA: forward through g, backward through h.
    """

    path: str
    forward: Forward = "h"
    knows = StandIn.knows

    @property
    def same_forward(self) -> bool:  # type: ignore[override]
        return self.forward == "g"

    def opened(self, read: Reader) -> Source:
        return StandIn(read.stand_in(self.path), self.forward) if names_file(self.path) else self

    def __call__(self, target: DefendedClassifier) -> nn.Module:
        _stood_for(target, self)
        raise unopened(self, self.path)
