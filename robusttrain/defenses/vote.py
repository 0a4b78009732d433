"""One answer out of several draws of a random defense."""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import partial
from typing import Literal

from torch import Tensor, nn

from robusttrain.core.checked import Count, checked
from robusttrain.core.errors import OptionError
from robusttrain.core.resize import Position
from robusttrain.core.rng import Rng
from robusttrain.models.defense import Classify, Defense, refuse_unasked
from robusttrain.models.voting import draws_of, log_majority, log_mean


@checked
class Vote(Defense):
    """The classifier's answers to several draws of a random defense, made one [Guo et al. 2018,
    section 4; P4 5.1].

    What stands behind the vote sees one draw after the other, in a `Chain` the later defenses, too.
    The answer is a vector of log-probabilities. In training mode there is one draw for a loss, as
    Guo et al. train; an inner attack, which asks in evaluation mode, takes all. A pass costs as
    many passes of the classifier as there are draws.

    Args:
        defense: draws something.
        draws: how many draws; 30 in both papers.
        rule: "mean", the mean of the softmax; or "majority", the share of draws that chose a class,
            where the mean decides between equals.
    """

    votes = True

    def __init__(
        self, defense: Defense, draws: Count = 30, rule: Literal["mean", "majority"] = "mean"
    ) -> None:
        super().__init__()
        if not defense.random:
            raise OptionError(
                "defense",
                type(defense).__name__,
                "draws nothing, so all votes would be the same: vote on a random defense, such as"
                " CropRescale or RandomResizePad",
            )
        refuse_unasked(self, Vote)
        self.defense, self.draws = defense, draws
        self.rule: Literal["mean", "majority"] = rule

    @property
    def random(self) -> bool:  # type: ignore[override]
        return self.defense.random

    @property
    def differentiable(self) -> bool:  # type: ignore[override]
        return self.defense.differentiable

    @property
    def iterative(self) -> bool:  # type: ignore[override]
        return self.defense.iterative

    @property
    def stepwise(self) -> bool:  # type: ignore[override]
        return self.defense.stepwise

    @property
    def searches(self) -> bool:  # type: ignore[override]
        return self.defense.searches

    @property
    def asks_classifier(self) -> bool:  # type: ignore[override]
        return self.defense.asks_classifier

    @property
    def has_f_b(self) -> bool:  # type: ignore[override]
        return self.defense.has_f_b

    @property
    def draws_patterns(self) -> bool:  # type: ignore[override]
        return self.defense.draws_patterns

    @property
    def sides(self) -> range:  # type: ignore[override]
        return self.defense.sides

    @property
    def certified_sigma(self) -> float | None:  # type: ignore[override]
        # A certificate is about the class that most draws name; a mean may name another one.
        return self.defense.certified_sigma if self.rule == "majority" else None

    @property
    def gradients(self) -> int:  # type: ignore[override]
        return self.draws * self.defense.gradients

    @property
    def parts(self) -> tuple[Defense, ...]:
        return self.defense.parts

    def rebuilt(self, change: Callable[[Defense], Defense]) -> Defense:
        """The vote on the changed defense; that defense alone if it draws nothing any more."""
        return self._on(self.defense.rebuilt(change))

    def bound_to(self, behind: nn.Module) -> Defense:
        inner = self.defense.bound_to(behind)
        return self if inner is self.defense else self._on(inner)

    def _on(self, inner: Defense) -> Defense:
        """The vote on another defense; a subclass keeps what it does besides."""
        if not inner.random and type(self) is Vote:
            return inner
        vote = copy.copy(self)
        vote._modules = {**self._modules, "defense": inner}
        return vote

    def identity_fits(self, images: Tensor) -> bool:
        return self.defense.identity_fits(images)

    def with_steps(self, steps: int) -> Defense:
        return self._on(self.defense.with_steps(steps))

    def single_draw(self) -> Defense:
        return self.defense.single_draw()

    def pattern(self, size: int | None, position: Position) -> Defense:
        return self.defense.pattern(size, position)

    def transform(self, images: Tensor, rng: Rng) -> Tensor:
        """One draw of the defense."""
        return self.defense(images, rng)  # type: ignore[no-any-return]

    def predict(self, classify: Classify, images: Tensor, rng: Rng | None = None) -> Tensor:
        if self.training:
            return self.defense.predict(classify, images, rng)
        rng = Rng.from_global(len(images), images.device) if rng is None else rng
        logits = draws_of(partial(self.defense.predict, classify), images, rng, self.draws)
        return (log_mean if self.rule == "mean" else log_majority)(logits)
