"""Defenses that search, before classification, on the very classifier that they protect."""

from __future__ import annotations

import copy
from abc import ABC
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from robusttrain.attacks.algorithms.projected_gradient import ProjectedGradient
from robusttrain.attacks.asking import Queried
from robusttrain.attacks.prepare import followed_by_none, prepared
from robusttrain.core.errors import UserError
from robusttrain.core.rng import Rng
from robusttrain.defenses.searched import searched
from robusttrain.models.declared import says_random
from robusttrain.models.defense import Defense


class ClassifierSearch(Defense, ABC):
    """g(x): some steps along the sign of a gradient of the classifier that stands behind g.

    g owns no model. `DefendedClassifier` hands it the classifier (`Defense.bound_to`), in a chain
    with all later defenses before it, and g asks it in evaluation mode, as it is at that moment: g
    changes while the classifier is trained.

    Automatic differentiation through g gives the identity, as for `AdversarialTransform`.

    Args:
        attack: the search.
    """

    differentiable = False
    iterative = True
    searches = True
    asks_classifier = True

    def __init__(self, attack: ProjectedGradient) -> None:
        super().__init__()
        self.attack = attack
        # In a list, out of sight of all that trains, saves or moves modules: g only looks.
        self._behind: list[Queried] = []

    @property
    def random(self) -> bool:  # type: ignore[override]
        """Whether the start is random, or the classifier that g asks says that it is."""
        start = self.attack.random_start and self.attack.threat.epsilon > 0
        return start or any(says_random(each.model) for each in self._behind)

    @property
    def gradients(self) -> int:  # type: ignore[override]
        return self.attack.cost().gradients

    def bound_to(self, behind: nn.Module) -> Defense:
        if self._behind:
            return self
        bound = copy.copy(self)
        bound._behind = [Queried(behind)]
        return bound

    def with_steps(self, steps: int) -> Defense:
        """The same search, on the same classifier, with another number of steps."""
        twin = copy.copy(self)
        twin.attack = replace(self.attack, steps=steps)
        return twin

    def differentiated(self, dtype: torch.dtype | None = None) -> Any:
        """The classifier as it is differentiated: in its own type, whatever ``dtype`` says.

        Raises:
            UserError: g stands before no classifier.
        """
        if not self._behind:
            raise UserError(
                f"{type(self).__name__} asks the classifier that it protects, and stands before"
                " none: take DefendedClassifier(defense, classifier), or defense.bound_to(...)"
            )
        return self._behind[0]

    def transform(self, images: Tensor, rng: Rng) -> Tensor:
        queried = self.differentiated()
        # In training, batch norm must neither follow these passes nor mix the images of a batch:
        # not even where the inner attack lets it.
        with followed_by_none():
            if not any(module.training for module in queried.model.modules()):
                return searched(self.attack, queried, images, rng)
            with prepared(queried.model):
                return searched(self.attack, queried, images, rng)
