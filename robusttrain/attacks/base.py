"""The noun ``Attack`` and what every attack promises."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import fields, is_dataclass, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from robusttrain.attacks.asking import Queried
from robusttrain.attacks.parts.gradients import GradientEstimator
from robusttrain.attacks.parts.objectives import Objective, need_classes
from robusttrain.attacks.parts.threats import Threat
from robusttrain.attacks.prepare import prepared
from robusttrain.attacks.rounding import narrowed
from robusttrain.core.errors import OptionError, UserError
from robusttrain.core.labels import check_labels, labels_and_range
from robusttrain.core.parts import part
from robusttrain.core.rng import Rng
from robusttrain.models.declared import dtype_of


class Cost(NamedTuple):
    """What an attack asks of its source, per image.

    Args:
        gradients: gradient evaluations, each one forward and one backward pass.
        queries: forward passes alone.
    """

    gradients: int
    queries: int


#: How far beyond [0, 1] pixel values may lie: rounding in float32. A shorter type rounds more.
ROUNDING = 1e-6


def check_images(images: Tensor) -> Tensor:
    """Images (B, C, H, W) in [0, 1], in float32 or wider; values that rounding left outside are
    clamped.

    Raises:
        UserError: no floats, another shape, or values that are not in [0, 1].
    """
    if not isinstance(images, Tensor):
        raise UserError(f"images: expected a tensor, got {type(images).__name__}")
    if images.dim() != 4 or not images.is_floating_point():
        raise UserError(
            f"images: expected floats (B, C, H, W), got {images.dtype} {tuple(images.shape)}"
            + ("; divide 8-bit images by 255" if images.dtype == torch.uint8 else "")
        )
    wide = images.to(torch.promote_types(images.dtype, torch.float32))
    if not len(images):
        return wide
    # As numbers at once: each comparison of tensors would wait for the device anew.
    low, high = torch.stack(torch.aminmax(wide.detach())).tolist()
    if math.isnan(low):
        raise UserError("images: some values are NaN; a pixel value lies in [0, 1]")
    off = max(ROUNDING, torch.finfo(images.dtype).eps)
    if not (low >= -off and high <= 1 + off):
        raise UserError(
            f"images: values must lie in [0, 1], got [{low:.3g}, {high:.3g}]; "
            "normalise inside the model, and divide 8-bit images by 255"
        )
    return wide.clamp(0, 1) if low < 0 or high > 1 else wide


#: Queries that are left of an attack that needs no strength.
LEAST_QUERIES = 60


def times(count: int, effort: float, least: int = 3) -> int:
    """``count`` steps or queries times an effort; no fewer than min(``count``, ``least``)."""
    return max(min(count, least), round(count * effort))


class Attack(ABC):
    """Finds adversarial images. Subclasses are frozen dataclasses that write ``run`` and ``cost``.

    The other methods say what an attack is made of, and make other versions of it. A caller that
    wants other steps, draws or radii uses these methods and nothing else. An attack that overrides
    none of them is evaluated all the same. What cannot be done with it is reported as not done.
    """

    threat: Threat
    #: Whether its queries go to the source's g, instead of to the source.
    asks_g: bool = False
    #: Draws of a random model that judge each of its points; 0 where no votes are taken.
    votes: int = 0

    @property
    def members(self) -> tuple[Attack, ...]:
        """The attacks inside a wrapper, in their order and in the wrapper's threat; empty for any
        other attack.
        """
        return ()

    @property
    def maximises(self) -> Objective | None:
        """The attack's objective; None where it has none among its parts."""
        return part(self, Objective)[1]  # type: ignore[type-abstract]

    def need_classes(self, classes: int) -> None:
        """Raise UserError if the attack, or one of its members, needs more classes than these."""
        for member in self.members:
            member.need_classes(classes)
        if self.maximises is not None:
            need_classes(self.maximises, classes)

    @property
    def estimator(self) -> GradientEstimator | None:
        """The attack's gradient estimator; None where it has none among its parts."""
        return part(self, GradientEstimator)[1]  # type: ignore[type-abstract]

    def with_members(self, members: Sequence[Attack]) -> Attack:
        """The same wrapper around other attacks, as many as its `members`.

        Raises:
            OptionError: the attack is no wrapper.
        """
        raise OptionError("members", list(members), f"{type(self).__name__} is no wrapper")

    def within(self, threat: Threat) -> Attack:
        """The same attack in another threat; step sizes stay as they are.

        Raises:
            OptionError: the attack does not know that threat, or cannot be moved out of its own.
        """
        moved = self._with(threat=threat)
        if moved is None:
            raise OptionError(
                "threat",
                threat,
                f"cannot be given to {type(self).__name__}, which has one of its own",
            )
        return moved

    def at_radius(self, epsilon: float) -> Attack:
        """The same attack within another radius; a step size in pixel values changes along with it.

        Raises:
            OptionError: the attack cannot be moved out of its own threat.
        """
        inside = self._inside(lambda member: member.at_radius(epsilon))
        return (inside or self).within(self.threat.at(epsilon))

    def scaled(self, effort: float) -> Attack | None:
        """The same attack with ``effort`` times its steps (or queries); None where it has none.

        Twice the steps are finer ones, in the same ball. An effort of 0 leaves a few steps, for
        checks that need no strength.
        """
        return self._inside(lambda member: member.scaled(effort))

    def with_gradient(
        self, change: Callable[[GradientEstimator], GradientEstimator]
    ) -> Attack | None:
        """The same attack with ``change(estimator)`` for each of its estimators; None where it has
        none.
        """
        name, estimator = part(self, GradientEstimator)  # type: ignore[type-abstract]
        if name is not None and estimator is not None:
            return self._with(**{name: change(estimator)})
        return self._inside(lambda member: member.with_gradient(change))

    def with_objective(self, objective: Objective) -> Attack | None:
        """The same attack with another objective in place of its own; None where it has none that
        can be exchanged.
        """
        name, _ = part(self, Objective)  # type: ignore[type-abstract]
        if name is not None:
            return self._with(**{name: objective})
        return self._inside(lambda member: member.with_objective(objective))

    def with_draws(self, least: int) -> Attack | None:
        """The same attack with twice the draws of a random model, and at least ``least``.

        The draws are those that its estimator averages over, and those that vote. None where it
        has neither.
        """
        changed = self._inside(lambda member: member.with_draws(least))
        if self.estimator is not None:
            changed = self.with_gradient(
                lambda gradient: gradient.with_draws(max(2 * gradient.averaged, least))
            )
        if self.votes:
            changed = (changed or self)._with(votes=max(2 * self.votes, least))
        return changed

    def for_one_draw(self) -> Attack:
        """The same attack on a model that repeats itself: what averages over draws of the model,
        and over nothing else, takes one.
        """
        return self.with_gradient(lambda gradient: gradient.for_one_draw()) or self

    @property
    def draws_seen(self) -> int:
        """How many draws of a random model the attack decides over; 1 where it does not average."""
        seen = [1, self.votes, *(member.draws_seen for member in self.members)]
        return max([*seen, self.estimator.draws_seen] if self.estimator else seen)

    def _inside(self, change: Callable[[Attack], Attack | None]) -> Attack | None:
        """The wrapper around changed members; None if ``change`` gives None for all of them."""
        changed = [change(member) for member in self.members]
        if all(each is None for each in changed):
            return None
        pairs = zip(changed, self.members, strict=True)
        return self.with_members([new or member for new, member in pairs])

    def _with(self, **values: Any) -> Attack | None:
        """The attack with other values; None where it has no such fields."""
        if not is_dataclass(self) or not values.keys() <= {each.name for each in fields(self)}:
            return None
        changed: Attack = replace(self, **values)  # type: ignore[assignment]
        return changed

    @property
    def seeks_nearest(self) -> bool:
        """Whether the attack goes on after a success, for an adversarial image that is nearer.

        Then an evaluation never lets an image go early. A wrapper seeks it where a member does.
        """
        return any(member.seeks_nearest for member in self.members)

    @property
    def by_norm(self) -> bool:
        """Whether it looks for the nearest boundary by the threat's norm alone, and is projected
        into the ball at its end.

        What it returns may touch that boundary, and a ball that is more than a radius throws away
        much of what it finds. A wrapper does so where a member does.
        """
        return any(member.by_norm for member in self.members)

    @property
    def reach(self) -> float | None:
        """How far all steps together can carry an image, in the threat's units; None where nobody
        says. What is less than the radius leaves a part of the ball out. A wrapper reaches as far
        as the farthest of its members.
        """
        reached = [member.reach for member in self.members]
        known = [each for each in reached if each is not None]
        return max(known) if known and len(known) == len(reached) else None

    @property
    def rounds_well(self) -> bool:
        """Whether gradients computed in bfloat16 serve the attack as well as exact ones.

        Steps along the sign of a gradient do not feel its rounding. Attacks that compare losses or
        distances do. So this is False unless an attack says otherwise.
        """
        return False

    def __call__(
        self, source: nn.Module, images: Tensor, labels: Tensor, rng: Rng | None = None
    ) -> Tensor:
        """Adversarial images inside the threat.

        Args:
            source: what the attacker differentiates, any ``nn.Module`` or function from images in
                [0, 1] to logits (B, K). A module is in evaluation mode during the attack, and
                afterwards as before. A source that draws from a global generator is asked image
                by image (see `Queried`).
            images: (B, C, H, W), pixel values in [0, 1].
            labels: (B,), true classes 0..K-1: whole numbers of any type.
            rng: streams of the images, (B,); None takes keys from torch's global generator.

        Returns:
            (B, C, H, W), detached, in the images' type. The attack itself computes in float32, or
            in float64 where images or weights are; the numbers that it draws are the same in all
            types.

        Raises:
            UserError: images outside [0, 1] or of another shape, labels of another length or
                without a class of the model, answers that are no logits, no gradient to follow.
        """
        wide, (labels, span) = check_images(images), labels_and_range(labels, images)
        rng = Rng.from_global(len(images), images.device) if rng is None else rng
        source = Queried.of(source)
        if not len(images):
            return images.detach().clone()
        source.labels = span
        dtype = torch.promote_types(wide.dtype, dtype_of(source) or wide.dtype)
        with prepared(source):
            # Inference tensors can never enter autograd; a copy made outside inference mode can.
            x, y = wide.detach().to(dtype, copy=True), labels.clone()
            adversarial = _one_each(self.run(source, x, y, rng), x, type(self).__name__)
            if adversarial.dtype == images.dtype or not len(adversarial):
                return adversarial
            if torch.finfo(adversarial.dtype).eps < torch.finfo(images.dtype).eps:
                return narrowed(source, adversarial, x, y, self.threat, images.dtype)
            return adversarial.to(images.dtype)

    @abstractmethod
    def run(self, source: nn.Module, images: Tensor, labels: Tensor, rng: Rng) -> Tensor:
        """The algorithm; arguments as for ``__call__``, which readies them.

        The source is a `Queried`, prepared. The images are detached, in float32 or wider, and the
        labels int64.
        """

    def check(self, source: nn.Module) -> None:  # noqa: B027 - most attacks take any source
        """Raise UserError if ``source`` lacks what this attack needs; called before any attack
        runs.
        """

    def goals(self, source: nn.Module, images: Tensor, labels: Tensor, rng: Rng) -> Tensor | None:
        """The class (B,) that a targeted attack with one target strives for in each image, else
        None.

        Arguments as for ``__call__``. With the same streams, the classes are those of that call.
        """
        objective = self.maximises
        if objective is None or objective.target is None:
            return None
        images, labels = check_images(images), check_labels(labels, images)
        with prepared(source):
            aimed = objective.aim(source, images.clone(), labels.clone(), rng.fold("aim"))
        return aimed[:, -1] if aimed.dim() > 1 else aimed

    @abstractmethod
    def cost(self) -> Cost:
        """What ``run`` asks of the source, per image."""

    def cost_on(self, source: nn.Module) -> Cost:
        """`cost`, and what ``run`` asks besides of a source that is random, or fuses losses, where
        `cost` leaves that out. A wrapper counts what its members ask.

        Args:
            source: a `Queried`, which knows by now whether it is random.
        """
        return self.cost()


def _one_each(made: Any, images: Tensor, attack: str) -> Tensor:
    """What an attack's `run` returned, detached.

    Raises:
        UserError: it is not one image for each, in floats.
    """
    if isinstance(made, Tensor) and made.shape == images.shape:
        if made.is_floating_point():
            return made.detach()
        raise UserError(
            f"{attack}.run returned {str(made.dtype).removeprefix('torch.')}, not floats in [0, 1]:"
            " return images of the kind that it was given"
        )
    got = tuple(made.shape) if isinstance(made, Tensor) else type(made).__name__
    raise UserError(
        f"{attack}.run returned {got}, not images {tuple(images.shape)}: return one adversarial"
        " image for each image"
    )
