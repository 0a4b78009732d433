"""The noun ``Attack`` and what every attack promises."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import fields, is_dataclass, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from robusttrain.attacks.asking import Queried
from robusttrain.attacks.parts.gradients import GradientEstimator
from robusttrain.attacks.parts.objectives import Objective
from robusttrain.attacks.parts.threats import Threat
from robusttrain.attacks.prepare import prepared
from robusttrain.core.errors import OptionError, UserError
from robusttrain.core.parts import part
from robusttrain.core.rng import Rng


class Cost(NamedTuple):
    """What an attack asks of its source, per image.

    Args:
        gradients: gradient evaluations, each one forward and one backward pass.
        queries: forward passes alone.
    """

    gradients: int
    queries: int


def check_images(images: Tensor) -> None:
    """Raise UserError unless images are a float tensor (B, C, H, W) with values in [0, 1]."""
    if images.dim() != 4 or not images.is_floating_point():
        raise UserError(
            f"images: expected floats (B, C, H, W), got {images.dtype} {tuple(images.shape)}"
        )
    if not len(images):
        return
    low, high = torch.aminmax(images)
    if not (low >= 0 and high <= 1):
        raise UserError(
            f"images: values must lie in [0, 1], got [{low.item():.3g}, {high.item():.3g}]; "
            "normalise inside the model, and divide 8-bit images by 255"
        )


#: Queries that are left of an attack that needs no strength.
LEAST_QUERIES = 60


def times(count: int, effort: float, least: int = 3) -> int:
    """A number of steps or queries times an effort; never less than ``least``, where there are as
    many.
    """
    return max(min(count, least), round(count * effort))


class Attack(ABC):
    """Finds adversarial images. Subclasses are frozen dataclasses that write ``run`` and ``cost``.

    The rest says what an attack is made of, and how it becomes another version of itself. Nothing
    else is known of it: whoever wants other steps, draws or radii asks here. An attack that says
    nothing is evaluated all the same; what cannot be done with it is reported as not done.
    """

    threat: Threat
    #: Whether its queries are to the g behind the source, instead of to the source.
    asks_g: bool = False
    #: Draws of a random model that judge each of its points; 0: it has no such votes.
    votes: int = 0

    @property
    def members(self) -> tuple[Attack, ...]:
        """The attacks inside a wrapper, in their order and in the wrapper's threat; none for all
        others.
        """
        return ()

    @property
    def maximises(self) -> Objective | None:
        """Its objective, where it has one among its parts."""
        return part(self, Objective)[1]  # type: ignore[type-abstract]

    @property
    def estimator(self) -> GradientEstimator | None:
        """How it estimates gradients, where it has an estimator among its parts."""
        return part(self, GradientEstimator)[1]  # type: ignore[type-abstract]

    def with_members(self, members: Sequence[Attack]) -> Attack:
        """The same wrapper around others, one for each of ``members``; for an attack that has any.

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
        return (inside or self).within(replace(self.threat, epsilon=epsilon))  # type: ignore[type-var]

    def scaled(self, effort: float) -> Attack | None:
        """The same attack with ``effort`` times its steps (or queries), or None: it has none to
        scale.

        Twice the steps are finer ones, in the same ball. With an effort of 0 a few steps are left:
        for what needs no strength.
        """
        return self._inside(lambda member: member.scaled(effort))

    def with_gradient(
        self, change: Callable[[GradientEstimator], GradientEstimator]
    ) -> Attack | None:
        """The same attack with another estimator of its gradients, ``change`` of each; None where
        it has none.
        """
        name, estimator = part(self, GradientEstimator)  # type: ignore[type-abstract]
        if name is not None and estimator is not None:
            return self._with(**{name: change(estimator)})
        return self._inside(lambda member: member.with_gradient(change))

    def with_draws(self, least: int) -> Attack | None:
        """The same attack that decides over twice the draws of a random model, and at least
        ``least``: in averages of its estimator and in votes. None where it has neither.
        """
        changed = self._inside(lambda member: member.with_draws(least)) if self.members else None
        if self.estimator is not None:
            changed = self.with_gradient(
                lambda gradient: gradient.with_draws(max(2 * gradient.averaged, least))
            )
        if self.votes:
            changed = (changed or self)._with(votes=max(2 * self.votes, least))
        return changed

    @property
    def draws_seen(self) -> int:
        """Over how many draws of a random model it decides: 1 where it averages over none."""
        seen = [1, self.votes, *(member.draws_seen for member in self.members)]
        return max([*seen, self.estimator.draws_seen] if self.estimator else seen)

    def _inside(self, change: Callable[[Attack], Attack | None]) -> Attack | None:
        """The wrapper around other versions of its members; None if none of them has one."""
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
    def rounds_well(self) -> bool:
        """Whether gradients computed in bfloat16 serve it as well as exact ones.

        Steps along the sign of a gradient do not feel its rounding. Attacks that compare losses or
        distances do, and so this is False unless an attack says otherwise.
        """
        return False

    def __call__(
        self, source: nn.Module, images: Tensor, labels: Tensor, rng: Rng | None = None
    ) -> Tensor:
        """Adversarial images inside the threat.

        Args:
            source: what the attacker differentiates: images in [0, 1] to logits (B, K). Any
                ``nn.Module``; it is put into evaluation mode meanwhile and left as it was. One that
                draws from a global generator is asked image by image (see `Queried`).
            images: (B, C, H, W), pixel values in [0, 1].
            labels: (B,) int64, true classes.
            rng: streams of the images, (B,); None takes keys from torch's global generator.

        Returns:
            (B, C, H, W), detached.

        Raises:
            UserError: images outside [0, 1] or of another shape, labels of another length, no
                gradient to follow.
        """
        check_images(images)
        if labels.shape != images.shape[:1]:
            raise UserError(
                f"labels: expected one per image, ({len(images)},), got {tuple(labels.shape)}"
            )
        rng = Rng.from_global(len(images), images.device) if rng is None else rng
        source = Queried.of(source)
        with prepared(source):
            # Inference tensors can never enter autograd; a clone made outside inference mode can.
            images, labels = images.clone(), labels.clone()
            return self.run(source, images, labels, rng).detach()

    @abstractmethod
    def run(self, source: nn.Module, images: Tensor, labels: Tensor, rng: Rng) -> Tensor:
        """The algorithm, on a prepared source; arguments as for ``__call__``."""

    def check(self, source: nn.Module) -> None:  # noqa: B027 - most attacks take any source
        """Raise UserError if ``source`` lacks what this attack needs; asked before anything
        runs.
        """

    def goals(self, source: nn.Module, images: Tensor, labels: Tensor, rng: Rng) -> Tensor | None:
        """The class (B,) that a targeted attack with one target strives for in each image, else
        None.

        Arguments as for ``__call__``, with the same streams: the answer is what that call strives
        for.
        """
        objective = self.maximises
        if objective is None or objective.target is None:
            return None
        with prepared(source):
            aimed = objective.aim(source, images.clone(), labels.clone(), rng.fold("aim"))
        return aimed[:, -1] if aimed.dim() > 1 else aimed

    @abstractmethod
    def cost(self) -> Cost:
        """What ``run`` asks of the source, per image."""
