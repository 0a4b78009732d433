"""A function h in the place of g: all the way, or for the backward pass alone."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from robusttrain.attacks.asking import SourceModel
from robusttrain.attacks.sources.basic import Reader, Source
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
    found: Tensor = network(images, rng) if isinstance(network, Defense) else network(images)
    return found


class _BackwardOf(Defense):
    """Forward g, backward h."""

    def __init__(self, g: Defense, network: nn.Module) -> None:
        super().__init__()
        self.g, self.network, self.random = g, network, g.random or _says_random(network)

    def forward(self, images: Tensor, rng: Rng | None = None) -> Tensor:
        rng = Rng.from_global(len(images), images.device) if rng is None else rng
        return self.transform(images, rng)

    def transform(self, images: Tensor, rng: Rng) -> Tensor:
        with torch.no_grad():
            transformed: Tensor = self.g(images, rng)
        if not (torch.is_grad_enabled() and images.requires_grad):
            return transformed
        instead = _stand_in(self.network, images, rng)
        if instead.shape != transformed.shape:
            raise UserError(
                f"source Reparameterization: h turns images into {tuple(instead.shape[1:])} and"
                f" the defense into {tuple(transformed.shape[1:])}, so h's derivative cannot stand"
                " for the defense's"
            )
        # The bracket is zero in value and h in derivative: forward sees g(x) exactly.
        return transformed + (instead - instead.detach())


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
        if target.defense is None:
            raise UserError(
                "source Reparameterization: the target has no defense that h could stand for"
            )
        if self.forward == "g":
            return DefendedClassifier(_BackwardOf(target.defense, self.network), target.classifier)
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
        if target.defense is None:
            raise UserError(
                "source Reparameterization: the target has no defense that h could stand for"
            )
        raise unopened(self, self.path)
