"""Backward through a differentiable twin of the defense."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from robusttrain.attacks.sources.basic import IdentityBackward, Source, defense_of
from robusttrain.core.errors import UserError
from robusttrain.core.rng import Rng
from robusttrain.models.defended import DefendedClassifier
from robusttrain.models.defense import Defense, differentiated_as


class _TwinBackward(Defense):
    def __init__(self, g: Defense, twin: Defense) -> None:
        super().__init__()
        self.g, self.twin_of_g, self.random = g, twin, g.random

    def forward(self, images: Tensor, rng: Rng | None = None) -> Tensor:
        # Both draw from the same streams.
        rng = Rng.from_global(len(images), images.device) if rng is None else rng
        with torch.no_grad():
            transformed = self.g(images, rng)
        if not (torch.is_grad_enabled() and images.requires_grad):
            return transformed
        surrogate = self.twin_of_g(images, rng)
        if surrogate.shape != transformed.shape:
            raise UserError(
                f"source TwinBackward: {type(self.g).__name__} gives images of"
                f" {tuple(transformed.shape[1:])}, and its twin of {tuple(surrogate.shape[1:])}"
            )
        return differentiated_as(transformed, surrogate)

    def transform(self, images: Tensor, rng: Rng) -> Tensor:
        return self(images, rng)


@dataclass(frozen=True)
class TwinBackward(Source):
    """BPDA with a better approximation than the identity: forward through the true g, backward
    through its differentiable twin at the same image (Athalye et al. 2018, section 4.1; for JPEG,
    Shin & Song 2017).

    In a chain, each part that has a `Defense.twin` goes backward through it. Of the others, those
    without a derivative are taken for the identity, and the rest are differentiated as they are.
    """

    knows = "classifier, defense"

    def __call__(self, target: DefendedClassifier) -> nn.Module:
        whole = defense_of(target, self)
        if not whole.has_twin:
            raise UserError(
                f"source TwinBackward: {type(whole).__name__} has no differentiable twin: --attack"
                f" {('eot' if whole.random else 'pgd') if whole.differentiable else 'bpda-i'} goes"
                " through it without one"
            )

        def twinned(part: Defense) -> Defense:
            twin = part.twin()
            return part if twin is None else _TwinBackward(part, twin)

        around = DefendedClassifier(whole.rebuilt(twinned), target.classifier)
        # What is left without a derivative.
        return around if around.defense.differentiable else IdentityBackward()(around)  # type: ignore[union-attr]
