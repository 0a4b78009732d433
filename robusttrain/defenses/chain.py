"""Several defenses, one after the other."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor, nn

from robusttrain.core.errors import OptionError
from robusttrain.core.rng import Rng
from robusttrain.models.defended import DefendedClassifier
from robusttrain.models.defense import Classify, Defense, refuse_unasked


class Chain(Defense):
    """g_n(...g_2(g_1(x))), where each part has streams of its own.

    Args:
        defenses: the defenses, the first one nearest to the image.
    """

    def __init__(self, defenses: list[Defense]) -> None:
        super().__init__()
        if not defenses:
            raise OptionError("defenses", [], "name at least one defense")
        self.defenses = nn.ModuleList(defenses)
        if self.votes:
            refuse_unasked(self, Chain)

    @property
    def random(self) -> bool:  # type: ignore[override]
        return any(defense.random for defense in self.defenses)

    @property
    def differentiable(self) -> bool:  # type: ignore[override]
        return all(defense.differentiable for defense in self.defenses)

    @property
    def iterative(self) -> bool:  # type: ignore[override]
        return any(defense.iterative for defense in self.defenses)

    @property
    def stepwise(self) -> bool:  # type: ignore[override]
        return any(defense.stepwise for defense in self.defenses)

    @property
    def searches(self) -> bool:  # type: ignore[override]
        return any(defense.searches for defense in self.defenses)

    @property
    def asks_classifier(self) -> bool:  # type: ignore[override]
        return any(defense.asks_classifier for defense in self.defenses)

    @property
    def has_f_b(self) -> bool:  # type: ignore[override]
        return any(defense.has_f_b for defense in self.defenses)

    @property
    def draws_patterns(self) -> bool:  # type: ignore[override]
        """Whether exactly one part draws patterns: with two, neither alone gives a pattern of the
        whole.
        """
        return sum(part.draws_patterns for part in self.parts) == 1

    @property
    def votes(self) -> bool:  # type: ignore[override]
        """Whether a part votes, or the chain, a subclass with a ``predict`` of its own, does."""
        own = type(self).predict is not Chain.predict
        return own or any(defense.votes for defense in self.defenses)

    @property
    def certified_sigma(self) -> float | None:  # type: ignore[override]
        """That of the first part: what follows the noise is a part of the smoothed classifier."""
        return self.defenses[0].certified_sigma  # type: ignore[return-value]

    @property
    def gradients(self) -> int:  # type: ignore[override]
        return sum(defense.gradients for defense in self.defenses)  # type: ignore[misc]

    @property
    def parts(self) -> tuple[Defense, ...]:
        return tuple(part for defense in self.defenses for part in defense.parts)  # type: ignore[operator, union-attr]

    def rebuilt(self, change: Callable[[Defense], Defense]) -> Chain:
        return self._of([defense.rebuilt(change) for defense in self.defenses])  # type: ignore[operator, misc]

    def _of(self, defenses: Sequence[Defense]) -> Chain:
        """The same chain of other defenses: a subclass keeps what it does besides."""
        chain = copy.copy(self)
        chain._modules = {**self._modules, "defenses": nn.ModuleList(defenses)}
        return chain

    def bound_to(self, behind: nn.Module) -> Defense:
        """The same chain, each part bound to all that stands behind it."""
        if not self.asks_classifier:
            return self
        bound: list[Defense] = []
        for defense in reversed(self.defenses):
            rest = DefendedClassifier(Chain(list(bound)), behind) if bound else behind
            bound.insert(0, defense.bound_to(rest))  # type: ignore[operator]
        if all(one is other for one, other in zip(bound, self.defenses, strict=True)):
            return self
        return self._of(bound)

    def identity_fits(self, images: Tensor) -> bool:
        """Whether all parts without a derivative keep the size; the others may change it."""
        rng = Rng.for_images(0, torch.zeros(1, dtype=torch.int64, device=images.device))
        images = images[:1]
        for part in self.parts:
            if not part.differentiable and not part.keeps_size(images):
                return False
            with torch.no_grad():
                images = part(images, rng)
        return True

    def with_steps(self, steps: int) -> Defense:
        if not self.iterative:
            return super().with_steps(steps)
        return self.rebuilt(lambda part: part.with_steps(steps) if part.iterative else part)

    def single_draw(self) -> Chain:
        first, *rest = self.defenses
        return self._of([first.single_draw(), *rest])  # type: ignore[operator, list-item]

    def predict(self, classify: Classify, images: Tensor, rng: Rng | None = None) -> Tensor:
        """With a vote among the parts, each part predicts in front of those that follow it: what is
        voted on passes all later parts anew.
        """
        if not self.votes:
            return super().predict(classify, images, rng)
        rng = Rng.from_global(len(images), images.device) if rng is None else rng

        def behind(number: int, images: Tensor, rng: Rng | None) -> Tensor:
            if number == len(self.defenses):
                return classify(images, rng)
            assert rng is not None
            return self.defenses[number].predict(  # type: ignore[operator, no-any-return]
                partial(behind, number + 1), images, rng.fold(number)
            )

        return behind(0, images, rng)

    def transform(self, images: Tensor, rng: Rng) -> Tensor:
        for number, defense in enumerate(self.defenses):
            images = defense(images, rng.fold(number))
        return images
