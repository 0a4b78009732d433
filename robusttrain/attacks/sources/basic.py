"""Sources: what the attacker differentiates.

``source(target)`` builds, from the defended classifier under attack, the model that the attack is
given. Adversarial images are always verified on the target itself, never on the source.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Protocol, TypeGuard

import torch
from torch import Tensor, nn

from robusttrain.attacks.asking import Queried, SourceModel
from robusttrain.attacks.sources.forward_of import ForwardOf
from robusttrain.core.checked import Whole, checked
from robusttrain.core.errors import UserError
from robusttrain.core.rng import Rng
from robusttrain.models.declared import says_random
from robusttrain.models.defended import DefendedClassifier, classified
from robusttrain.models.defense import Defense


class Reader(Protocol):
    """Reads the models that sources name; attacks open no files themselves."""

    def checkpoint(self, path: str, trust: Sequence[str]) -> DefendedClassifier:
        """The defended classifier of a checkpoint; ``trust`` as for `robusttrain.load`."""
        ...

    def stand_in(self, path: str) -> nn.Module:
        """The h of a file that ``train.py --training reparameterization`` left."""
        ...


def _several(value: object) -> TypeGuard[Sequence[object]]:
    return isinstance(value, list | tuple)


class Source(ABC):
    """From the target to the model that the attacker differentiates."""

    #: What the attacker must know to build this source.
    knows: str = ""
    #: Whether it is another model than the target, whatever the target is.
    other_model: bool = False
    #: Whether what it builds answers as the target does, whatever its gradients are.
    same_forward: bool = False
    #: Whether its gradients are those that automatic differentiation of the target gives.
    exact: bool = False

    @property
    def others(self) -> tuple[Source, ...]:
        """The sources of other models than the target: this one, or those that it is made of."""
        if self.other_model:
            return (self,)
        values = vars(self).values()
        made_of = [each for value in values for each in (value if _several(value) else [value])]
        return tuple(other for each in made_of if isinstance(each, Source) for other in each.others)

    def opened(self, read: Reader) -> Source:
        """The same source, with models in place of any files that it names."""
        return self

    def on_classifier(self) -> Source:
        """What the same attacker differentiates where no defense stands before the classifier: the
        classifier itself. A source of another model stays as it is, and so does one around it.
        """
        return self if self.others else Target()

    @abstractmethod
    def __call__(self, target: DefendedClassifier) -> nn.Module:
        """A module from images (B, C, H, W) to logits (B, K).

        Raises:
            UserError: the source makes no sense for this target.
        """


def defense_of(target: nn.Module, source: Source) -> Defense:
    """The target's defense; UserError if the target has none."""
    defense = target.defense if isinstance(target, DefendedClassifier) else None
    if defense is None:
        name = type(source).__name__
        raise UserError(
            f"source {name}: the target has no defense to go around; attack it as it is: --attack"
            f" {'eot' if says_random(target) else 'pgd'} (in Python, source Target)"
        )
    return defense


@dataclass(frozen=True)
class Target(Source):
    """The defended classifier as it is, with whatever gradient automatic differentiation finds in
    it.
    """

    knows = "classifier, defense"
    same_forward = exact = True

    def __call__(self, target: DefendedClassifier) -> nn.Module:
        return target


class _ClassifierOnly(SourceModel):
    transforms = True

    def __init__(self, defense: nn.Module, classifier: nn.Module) -> None:
        super().__init__()
        self.defense, self.classifier = defense, classifier
        self.random = says_random(classifier)

    def transform(self, images: Tensor, rng: Rng | None = None) -> Tensor:
        """g(images), for attacks that start there."""
        transformed: Tensor = self.defense(images, rng)
        return transformed

    def forward(self, images: Tensor, rng: Rng | None = None) -> Tensor:
        return classified(self.classifier, images, rng)


@dataclass(frozen=True)
class ClassifierOnly(Source):
    """f_a without its defense: white-box transfer ("WT" of [P1 4.2], the vanilla attack of
    [P4]).
    """

    knows = "classifier"

    def __call__(self, target: DefendedClassifier) -> nn.Module:
        return _ClassifierOnly(defense_of(target, self), target.classifier)


class _IdentityBackward(ForwardOf):
    costs = False  # so what does not fit is said before any attack

    def backward(self, images: Tensor, rng: Rng) -> Tensor:
        return images

    def misfit(self, images: Tensor, transformed: Tensor, instead: Tensor) -> str:
        return (
            f"source IdentityBackward: the defense turns images of {tuple(images.shape[1:])}"
            f" into {tuple(transformed.shape[1:])}, so its derivative cannot be the identity:"
            f" --attack {'eot' if self.random else 'pgd'} differentiates it as it is (in"
            " Python, source Target)"
        )


@dataclass(frozen=True)
class IdentityBackward(Source):
    """BPDA-I: forward through the true g, backward as if g were the identity (Athalye et al. 2018,
    [P1 4.1]).

    In a chain, the parts without a derivative are taken for the identity; the others are
    differentiated as they are. A defense that has a derivative throughout is taken for the identity
    as a whole.
    """

    knows = "classifier, defense"
    same_forward = True

    def __call__(self, target: DefendedClassifier) -> nn.Module:
        whole = defense_of(target, self)
        if whole.differentiable:
            return DefendedClassifier(_IdentityBackward(whole), target.classifier)
        masked = whole.rebuilt(
            lambda part: part if part.differentiable else _IdentityBackward(part)
        )
        return DefendedClassifier(masked, target.classifier)


class _FixedRandomness(SourceModel):
    random = False
    asks_queried = True

    def __init__(self, model: nn.Module, draw: int) -> None:
        super().__init__()
        self.model, self.draw = Queried.of(model), draw

    def forward(self, images: Tensor, rng: Rng | None = None) -> Tensor:
        keys = torch.full((len(images),), self.draw, dtype=torch.int64, device=images.device)
        logits: Tensor = self.model(images, Rng(keys).fold("fixed"))
        return logits

    def made_of(self, change: Callable[[nn.Module], nn.Module]) -> nn.Module:
        """Of an attacker who has the draw that counts: that one, in place of a frozen one."""
        return change(self.model)


@dataclass(frozen=True)
class FixedRandomness(Source):
    """The target with one frozen draw of its randomness, the same in every step and for every
    image.

    An attacker who cannot break even the frozen target has a bad gradient. An attacker who breaks
    only the frozen target is held off by randomness alone (Athalye et al. 2018).

    Args:
        draw: which draw.
        inner: how the frozen target is differentiated.
    """

    draw: int = 0
    inner: Source = field(default_factory=IdentityBackward)
    knows = "classifier, defense"

    def __call__(self, target: DefendedClassifier) -> nn.Module:
        if not target.random:
            raise UserError(
                "source FixedRandomness: the target draws nothing, so there is nothing to fix:"
                " --attack pgd, or bpda-i where it has a defense (in Python,"
                " robusttrain.evaluation.settle asks a model that does not say that it draws)"
            )
        return _FixedRandomness(self.inner(target), self.draw)


@checked
@dataclass(frozen=True)
class FewerSteps(Source):
    """The target with a g of fewer steps, forward and backward; verified on the g of all steps [P1
    3.3, 4.1].

    Args:
        steps: N of the attacker's g.
        inner: how f_a behind that g is differentiated.
    """

    steps: Whole = 2
    inner: Source = field(default_factory=IdentityBackward)
    knows = "classifier, defense"

    def __call__(self, target: DefendedClassifier) -> nn.Module:
        defense = iterative(target, self).with_steps(self.steps)
        return self.inner(DefendedClassifier(defense, target.classifier))


def iterative(target: nn.Module, source: Source) -> Defense:
    """The target's defense, if a part of it has steps that can be counted.

    Raises:
        UserError: the target has no defense, or one of another kind.
    """
    defense = defense_of(target, source)
    if not defense.iterative:
        raise _stepless(defense, source, "is no iterative transformation, so it has no steps")
    return defense


def searching(target: nn.Module, source: Source) -> Defense:
    """The target's defense, if steps of a part of it follow the sign of a gradient.

    Raises:
        UserError: the target has no defense, or one of another kind.
    """
    defense = iterative(target, source)
    if not defense.searches:
        raise _stepless(defense, source, "follows no gradient that could be unrolled")
    return defense


def preset_for(defense: Defense) -> str:
    """The preset of an attack that asks no more of a defense than whether it draws, and whether it
    has a derivative.
    """
    return ("eot" if defense.random else "pgd") if defense.differentiable else "bpda-i"


def _stepless(defense: Defense, source: Source, why: str) -> UserError:
    return UserError(
        f"source {type(source).__name__}: {type(defense).__name__} {why}: --attack"
        f" {preset_for(defense)} takes it as it is"
    )
