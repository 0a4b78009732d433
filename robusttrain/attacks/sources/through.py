"""The exact gradient through a defense of many steps, in the memory of one step.

Plain automatic differentiation keeps the activations of all steps until the backward pass has used
them: a purifier of 100 steps takes the memory of 100 networks. Here only the states between the
steps are kept, images, and the backward pass computes each step anew, with the same random numbers
(`torch.utils.checkpoint`). The gradient is the same, at the price of one more forward pass.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import Tensor, nn

from robusttrain.attacks.sources.basic import Source, Target, defense_of
from robusttrain.core.advice import warn
from robusttrain.core.checked import Count, checked
from robusttrain.core.errors import UserError
from robusttrain.core.rng import Rng
from robusttrain.models.defended import DefendedClassifier
from robusttrain.models.defense import Defense
from robusttrain.models.stepwise import Walk, recomputed, walking


class _Through(Defense):
    """A part whose backward pass goes as a `Walk` says.

    A part without steps is one step: it is computed anew as a whole.
    """

    def __init__(self, g: Defense, walk: Walk) -> None:
        super().__init__()
        self.g, self.walk = g, walk
        self.random, self.differentiable, self.stepwise = g.random, g.differentiable, g.stepwise

    def forward(self, images: Tensor, rng: Rng | None = None) -> Tensor:
        rng = Rng.from_global(len(images), images.device) if rng is None else rng
        return self.transform(images, rng)

    def transform(self, images: Tensor, rng: Rng) -> Tensor:
        # g takes its own stream from the caller's, as it does elsewhere: same streams, same g.
        with walking(self.walk):
            if self.stepwise or not self.walk.checkpoint:
                transformed: Tensor = self.g(images, rng)
            else:
                transformed = recomputed(lambda images: self.g(images, rng), images)
        return transformed


@checked
@dataclass(frozen=True)
class ThroughDefense(Source):
    """The target as it is, with the gradient of automatic differentiation, in memory that does not
    hold the activations of all steps of g.

    Steps are those that g takes through `Defense.loop` (trait ``stepwise``). A part that takes none
    is computed anew as a whole, so on the way back its memory is the plain one. Parts that say that
    they have no derivative are left as ``inner`` has them: to compute them anew would cost much and
    save nothing. So are parts that vote, which have the classifier answer several times.

    Args:
        checkpoint: whether steps are computed anew on the way back; otherwise the memory is that of
            the source `Target`.
        last: truncated backward pass: how many steps at the end of each loop have their own
            derivative. All steps before them together have the identity's, as in BPDA. None for the
            whole gradient.
        inner: how the parts without a derivative are differentiated: `IdentityBackward` takes the
            identity for them, `UnrolledTransform` unrolls them.

    Raises:
        UserError: no defense; ``last`` for a defense that is not ``stepwise``; an ``inner`` that
            leaves nothing of the defense.
    """

    checkpoint: bool = True
    last: Count | None = None
    inner: Source = field(default_factory=Target)
    knows = "classifier, defense"

    @property
    def same_forward(self) -> bool:  # type: ignore[override]
        return self.inner.same_forward

    @property
    def exact(self) -> bool:  # type: ignore[override]
        return self.last is None and self.inner.exact

    def __call__(self, target: DefendedClassifier) -> nn.Module:
        g = defense_of(target, self)
        built = self.inner(target)
        if not isinstance(built, DefendedClassifier) or built.defense is None:
            raise UserError(
                f"source ThroughDefense: inner = {type(self.inner).__name__} leaves no defense to"
                " go through: name Target, IdentityBackward or UnrolledTransform"
            )
        self._say(g, built.defense)
        walk = Walk(self.checkpoint, self.last)
        through = built.defense.rebuilt(
            lambda part: _Through(part, walk) if part.differentiable and not part.votes else part
        )
        return DefendedClassifier(through, built.classifier)

    def _say(self, g: Defense, defense: Defense) -> None:
        """What is not as one might expect from the source's name."""
        name = type(g).__name__
        parts = [part for part in defense.parts if part.differentiable]
        if any(part.stepwise for part in parts):
            return
        if self.last is not None:
            raise UserError(
                f"source ThroughDefense: {name} declares no steps, so it has no last = {self.last}"
                " of them: leave last out"
                + (", or take source UnrolledTransform" if defense.iterative else "")
            )
        if not parts:
            warn(
                f"source ThroughDefense: {name} says that it has no useful derivative; what"
                " automatic differentiation gives is taken as it is"
            )
        elif self.checkpoint:
            warn(
                f"source ThroughDefense: {name} declares no steps (trait stepwise), so it is"
                " computed anew as a whole, in the memory of the plain gradient"
            )
