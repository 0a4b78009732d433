"""The smallest radius at which an attack succeeds, by bisection."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor, nn

from robusttrain.attacks.algorithms.apgd import APGD
from robusttrain.attacks.algorithms.wrappers import (
    VOTES,
    common_goals,
    judge,
    random_and_wrong,
    within,
)
from robusttrain.attacks.base import Attack, Cost
from robusttrain.attacks.parts.objectives import Margin
from robusttrain.attacks.parts.threats import Linf, Threat, per_image
from robusttrain.attacks.queries import all_or_none
from robusttrain.attacks.ray import TRIES, Majority, held
from robusttrain.core.checked import Count, Whole, checked
from robusttrain.core.errors import OptionError
from robusttrain.core.rng import Rng


@checked
@dataclass(frozen=True)
class MinimalNorm(Attack):
    """Bisection over epsilon around any attack: the nearest adversarial image that it finds.

    The first run is within the threat's own epsilon. Where it succeeds, ``steps`` further runs
    halve the interval between the largest radius that failed and the smallest that succeeded; a
    result nearer than its radius lowers that radius to the next multiple of epsilon / 2^steps. All
    radii are such multiples, so images with the same radius run as one batch, and the final radius
    is off by at most one multiple from the end of a full bisection. It is only an upper bound of
    the least distance: an attack may fail where it succeeded with a smaller radius.

    The attack returns the nearest adversarial image of all runs, or the first run's result where no
    run succeeds. Success is misclassification by the source, on a random model in most of ``votes``
    draws, which no run has seen. The nearest success of a bisection was lucky, too: at the end its
    ray is searched for a point that holds with fresh draws (`robusttrain.attacks.ray`). An image
    that a deterministic model misclassifies as it stands is left alone.

    Steps of a fixed length do not follow the radius: give the attack a ``relative_step_size``, or
    take `APGD`.

    Args:
        attack: any attack; its own threat does not count.
        steps: halvings.
        votes: draws of a random model that judge a run.
        threat: whose norm is minimised; its epsilon is the largest radius.
    """

    attack: Attack = field(default_factory=APGD)
    steps: Whole = 10
    votes: Count = VOTES
    threat: Threat = field(default_factory=Linf)

    def __post_init__(self) -> None:
        if self.steps > 20:
            raise OptionError(
                "steps", self.steps, "must be at most 20: a float32 holds no finer radii"
            )
        self.at(2**self.steps)

    def at(self, multiple: int) -> Attack:
        """The attack within the radius ``multiple`` * epsilon / 2^steps."""
        radius = self.threat.epsilon * multiple / 2**self.steps
        return within(self.attack, self.threat.at(radius), "attack")

    @property
    def members(self) -> tuple[Attack, ...]:
        """The attack within the largest radius."""
        return (self.at(2**self.steps),)

    @property
    def seeks_nearest(self) -> bool:
        return True

    def with_members(self, members: Sequence[Attack]) -> MinimalNorm:
        return replace(self, attack=members[0])

    @property
    def asks_g(self) -> bool:  # type: ignore[override]
        return self.attack.asks_g

    def cost(self) -> Cost:
        """An upper bound: images for which the first run fails are spared the others, and the last
        search is for random models alone.
        """
        return self._bound(self.attack.cost())

    def cost_on(self, source: nn.Module) -> Cost:
        return self._bound(self.attack.cost_on(source))

    def _bound(self, cost: Cost) -> Cost:
        """What all runs cost at most, where one costs as much."""
        runs = self.steps + 1
        votes = (runs + TRIES) * self.votes
        return Cost(runs * cost.gradients, 2 + runs * cost.queries + votes)

    def check(self, source: nn.Module) -> None:
        self.attack.check(source)

    def goals(self, source: nn.Module, images: Tensor, labels: Tensor, rng: Rng) -> Tensor | None:
        return common_goals(
            [self.at(2**self.steps)] * (self.steps + 1), source, images, labels, rng
        )

    def run(self, source: nn.Module, images: Tensor, labels: Tensor, rng: Rng) -> Tensor:
        random, wrong = random_and_wrong(source, images, labels, rng)
        best = images.clone()
        nearest, alike = best.new_full((len(images),), torch.inf), all_or_none(random)
        finest = max(self.threat.epsilon, torch.finfo(torch.float32).tiny) / 2**self.steps
        failed = torch.zeros(len(images), dtype=torch.int64, device=images.device)
        succeeded = torch.full_like(failed, 2**self.steps)
        radius, left = succeeded.clone(), (~wrong).nonzero().squeeze(1)
        for step in range(self.steps + 1):
            adversarial, streams = best[left], rng[left].fold(step)
            # An attack has one radius: the host must know which ones there are.
            for multiple in sorted({*radius[left].tolist()}):
                here = (radius[left] == multiple).nonzero().squeeze(1)
                which = left[here]
                returned = self.at(multiple).run(
                    source, images[which], labels[which], streams[here]
                )
                adversarial[here] = returned.detach().to(adversarial.dtype)
            judged = (adversarial, labels[left], random[left], streams.fold("radius"))
            share, _ = judge(source, *judged, self.votes, alike)
            success = share > 0.5
            distance = self.threat.distance(adversarial, images[left])
            closer = success & (distance < nearest[left])
            nearest[left] = torch.where(closer, distance, nearest[left])
            best[left] = torch.where(per_image(closer | (step == 0)), adversarial, best[left])
            reached = (distance / finest).ceil().to(torch.int64).minimum(radius[left])
            succeeded[left] = torch.where(
                success, reached.minimum(succeeded[left]), succeeded[left]
            )
            failed[left] = torch.where(success, failed[left], radius[left])
            left = left[succeeded[left] - failed[left] > 1]
            if not len(left):
                break
            radius[left] = (failed[left] + succeeded[left]) // 2
        if alike is False:
            return best
        majority = Majority(source, Margin(), labels, 0.0, self.votes)
        which = random & nearest.isfinite()
        return held(majority, self.threat, images, best, which, rng.fold("settle"))
