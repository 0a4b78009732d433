"""The nearest point of a ray that a model misclassifies; of a random one, most draws.

An attack that keeps the nearest of many points tried on a random model keeps the luckiest one. Its
point still says in which direction to look.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from robusttrain.attacks.parts.objectives import Objective
from robusttrain.attacks.parts.threats import Threat, into_ball, per_image
from robusttrain.attacks.queries import share_above
from robusttrain.core.rng import Rng

#: How many radii are tried at most; by what the first is multiplied, squared each time, until there
#: is one on either side; the quotient of two radii that are near enough.
TRIES, LONGER, SHORTER, FINE = 10, 1.1, 0.95, 1.04


@dataclass(frozen=True)
class Majority:
    """Whether most draws of a random model take a point as adversarial.

    The question is stricter than a majority of ``votes``: the draws follow each other, and at no
    time may most of them have been right. With ten draws, of the points that fool 60, 80 and 90 %
    of all draws 38, 75 and 89 % pass. A plain majority would pass 63, 97 and all, and the least of
    several radii would then be a lucky one: less of what comes back holds with fresh draws, and
    what holds is farther away (`docs/strength.md`).

    Args:
        source: images (B, C, H, W) in [0, 1] to logits (B, K).
        objective: of the logits; a draw is fooled where it is greater than ``level``.
        goal: (B, ...), what the objective strives for.
        level: of the objective.
        votes: draws.
    """

    source: nn.Module
    objective: Objective
    goal: Tensor
    level: float
    votes: int

    def fooled(self, points: Tensor, left: Tensor, rng: Rng) -> Tensor:
        """(B,) bool: those of ``left``, all of random models, that most fresh draws take as
        adversarial. One draw follows the other; a point is dropped as soon as most were right, and
        taken as soon as more than half of all are fooled.

        Args:
            points: (B, C, H, W).
            left: indices of the points that are asked about.
            rng: streams of the images, (B,).
        """
        wrong = points.new_zeros(len(points))
        for vote in range(self.votes):
            if not len(left):
                break
            share = share_above(
                *(self.source, points[left], self.objective, self.goal[left], self.level),
                *(torch.ones_like(left, dtype=torch.bool), rng[left].fold(vote), 1, False),
            )
            wrong = wrong.index_add(0, left, share.to(wrong.dtype))
            twice = 2 * wrong[left]
            left = left[(twice >= vote + 1) & (twice <= self.votes)]  # the others are settled
        return 2 * wrong > self.votes


def bisected(wrong: Callable[[Tensor, int], Tensor], high: Tensor, halvings: int) -> Tensor:
    """(B,): the least share of the way from an image that was misclassified, at most ``high``.

    Args:
        wrong: shares (B,) and the number of the halving to (B,) bool, whether the points there are
            misclassified.
        high: (B,), shares whose points are.
        halvings: how often the interval from 0 on is halved.
    """
    low = torch.zeros_like(high)
    for k in range(halvings):
        middle = (low + high) / 2
        fell = wrong(middle, k)
        low, high = torch.where(fell, low, middle), torch.where(fell, middle, high)
    return high


def at(images: Tensor, change: Tensor, radius: Tensor) -> Tensor:
    """(B, C, H, W): images + radius (B,) * change, clipped to the box."""
    return torch.addcmul(images, per_image(radius), change).clamp_(0, 1)


def nearest_on_ray(
    majority: Majority, images: Tensor, change: Tensor, which: Tensor, rng: Rng
) -> tuple[Tensor, Tensor]:
    """The nearest point of each image's ray, as far as a few radii show, that fools most draws.

    First the radius grows or shrinks until one fails and one passes, then the interval is halved.
    The one that passed is tried again, with fresh draws, since the least of several radii near the
    boundary was lucky, too; where it fails, a longer one is taken. The longer one of the last try
    is taken without being asked about.

    Args:
        majority: what says who is fooled.
        images: (B, C, H, W), where the rays begin.
        change: (B, C, H, W), where they lead; radius 1 is tried first.
        which: (B,) bool, for which images it is asked; their model is random.
        rng: streams of the images, (B,).

    Returns:
        The points (B, C, H, W), and (B,) bool, where there is one.
    """
    radius = images.new_ones(len(images))
    failed, passed = torch.zeros_like(radius), torch.full_like(radius, torch.inf)
    left, again = which, torch.zeros_like(which)
    for number in range(TRIES):
        here = left.nonzero().squeeze(1)
        if not len(here):
            break
        fooled = majority.fooled(at(images, change, radius), here, rng.fold(number))
        left = left & ~(again & fooled)
        passed = torch.where(left & ~again & fooled, radius, passed)
        failed = torch.where(left & ~again & ~fooled, radius, failed)
        shorter, longer = SHORTER ** (2**number), LONGER ** (2**number)
        between = torch.where(failed > 0, (failed * passed).sqrt(), shorter * passed)
        between = torch.where(passed.isfinite(), between, longer * failed)
        fine = ~again & (passed <= FINE * failed)
        following = torch.where(again, FINE * radius, torch.where(fine, passed, between))
        radius, again = torch.where(left, following, radius), again | fine
    radius = torch.where(left & ~again, passed, radius)
    there = which & radius.isfinite()
    return at(images, change, torch.where(there, radius, 0)), there


def held(
    majority: Majority, threat: Threat, images: Tensor, found: Tensor, random: Tensor, rng: Rng
) -> Tensor:
    """(B, C, H, W): what an attack found, on a random model moved along its ray until it holds, and
    projected into the threat if it is farther away.

    Args:
        majority: what says who is fooled.
        threat: of the attack.
        images: (B, C, H, W).
        found: (B, C, H, W), the nearest that the attack found; the image where there is none.
        random: (B,) bool, for which images the model is random.
        rng: streams of the images, (B,).
    """
    change = found - images
    which = random & change.flatten(1).any(dim=1)
    points, there = nearest_on_ray(majority, images, change, which, rng)
    return into_ball(threat, torch.where(per_image(there), points, found), images)
