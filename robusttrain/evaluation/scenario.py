"""The noun ``Scenario``: one attack, ready to run."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from robusttrain.attacks import Attack, Queried, Source, prepared
from robusttrain.attacks.asking import LOOKED_AT, UNSEEN
from robusttrain.attacks.base import check_images
from robusttrain.core.advice import warn
from robusttrain.core.errors import UserError
from robusttrain.core.repeatable import repeatable
from robusttrain.core.rng import Rng
from robusttrain.evaluation.covering import wider_than
from robusttrain.evaluation.taking import classes_of
from robusttrain.evaluation.vanishing import ZERO, vanishes
from robusttrain.models.defended import DefendedClassifier


@dataclass(frozen=True)
class Scenario:
    """One attack, ready to run: the algorithm and its source.

    Args:
        attack: the algorithm.
        source: builds, from the target, what the attacker differentiates.
        knows: what the attacker must know, in words, printed beside every figure; "" for the
            source's own words.
    """

    attack: Attack
    source: Source
    knows: str = ""

    @property
    def knowledge(self) -> str:
        return self.knows or self.source.knows

    @repeatable()
    def __call__(
        self,
        model: nn.Module | Callable[[Tensor], Any],
        images: Tensor,
        labels: Tensor,
        rng: Rng | None = None,
    ) -> Tensor:
        """Adversarial images (B, C, H, W) for a model, defended or not; arguments as for an
        `Attack`. Warns of a gradient that is zero wherever it is asked for.

        Raises:
            UserError: as for an `Attack`, or the model cannot take these images.
        """
        shape = check_images(images).shape[1:]
        for line in wider_than([("epsilon", self.attack.threat)], shape):
            warn(line.removeprefix("warning: "))
        try:
            return self._run(model, images, labels, rng)
        except UserError:
            raise
        except Exception:
            classes_of(DefendedClassifier.of(model), images)  # says what it is in one line
            raise

    def _run(
        self,
        model: nn.Module | Callable[[Tensor], Any],
        images: Tensor,
        labels: Tensor,
        rng: Rng | None,
    ) -> Tensor:
        # One that says once what it finds of the answers, whoever asks.
        source = Queried.of(self.source(DefendedClassifier.of(model)))
        if self.attack.cost().gradients and vanishes(source, images, torch.arange(len(images))):
            warn(f"{type(self.attack).__name__}: {ZERO}")
        few = check_images(images[:LOOKED_AT])
        streams = Rng.for_images(0, torch.arange(len(few), device=few.device))
        with prepared(source):
            source.settle(few.clone(), streams.fold("random"))
        if source.draws_unseen:
            warn(UNSEEN)
        return self.attack(source, images, labels, rng)

    def knowledge_of(self, target: DefendedClassifier) -> str:
        """What the attacker knows of a target, in words: of a defense nothing, where there is
        none.
        """
        if self.knows or target.defense is not None:
            return self.knowledge
        return ", ".join(each for each in self.source.knows.split(", ") if each != "defense")
