"""Backward through a differentiable twin of the defense."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn

from robusttrain.attacks.sources.basic import IdentityBackward, Source, defense_of, preset_for
from robusttrain.attacks.sources.forward_of import ForwardOf
from robusttrain.core.errors import UserError
from robusttrain.core.rng import Rng
from robusttrain.models.defended import DefendedClassifier
from robusttrain.models.defense import Defense


class _TwinBackward(ForwardOf):
    def __init__(self, g: Defense, twin: Defense) -> None:
        super().__init__(g)
        self.twin_of_g = twin

    def backward(self, images: Tensor, rng: Rng) -> Tensor:
        surrogate: Tensor = self.twin_of_g(images, rng)
        return surrogate

    def misfit(self, images: Tensor, transformed: Tensor, instead: Tensor) -> str:
        return (
            f"source TwinBackward: {type(self.g).__name__} gives images of"
            f" {tuple(transformed.shape[1:])}, and its twin of {tuple(instead.shape[1:])}"
        )


@dataclass(frozen=True)
class TwinBackward(Source):
    """BPDA with a better approximation than the identity: forward through the true g, backward
    through its differentiable twin at the same image (Athalye et al. 2018, section 4.1; for JPEG,
    Shin & Song 2017).

    In a chain, each part that has a `Defense.twin` goes backward through it. Of the others, those
    without a derivative are taken for the identity, and the rest are differentiated as they are.
    """

    knows = "classifier, defense"
    same_forward = True

    def __call__(self, target: DefendedClassifier) -> nn.Module:
        whole = defense_of(target, self)
        if not whole.has_twin:
            raise UserError(
                f"source TwinBackward: {type(whole).__name__} has no differentiable twin: --attack"
                f" {preset_for(whole)} goes through it without one"
            )

        def twinned(part: Defense) -> Defense:
            twin = part.twin()
            return part if twin is None else _TwinBackward(part, twin)

        around = DefendedClassifier(whole.rebuilt(twinned), target.classifier)
        # What is left without a derivative.
        return around if around.defense.differentiable else IdentityBackward()(around)  # type: ignore[union-attr]
