"""The nearest adversarial iterate of each image: what attacks that minimise a norm have to keep."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from robusttrain.attacks.asking import Queried
from robusttrain.attacks.base import Cost
from robusttrain.attacks.parts.differentiation import of_order_one
from robusttrain.attacks.parts.gradients import GradientEstimator
from robusttrain.attacks.parts.objectives import Margin
from robusttrain.attacks.parts.threats import Threat, into_ball, per_image
from robusttrain.attacks.queries import share_above
from robusttrain.attacks.ray import TRIES, Majority, nearest_on_ray
from robusttrain.attacks.rounding import LEAST_STEP
from robusttrain.core.rng import Rng

#: How much the last iterate weighs in the mean of all on a random model.
LATEST = 0.1
#: Two answers that differ by more than this share of a margin, or of 1, are draws of a random
#: model. (Less is rounding: the two passes need not have the same number of images.)
ROUNDING = 1e-3
#: q of the dual norm: a linear function with gradient w falls by epsilon |w|_q at most in the ball.
DUAL = {"linf": 1, "l2": 2}
_TINY = torch.finfo(torch.float32).tiny


def annealed(first: float, last: float, k: int, steps: int) -> float:
    """Step k = 0, 1, ... of so many on half a cosine from ``first`` on towards ``last``."""
    return last + (first - last) * (1 + math.cos(math.pi * k / steps)) / 2


def slope_within(x: Tensor, gradient: Tensor, norm: str) -> tuple[Tensor, Tensor]:
    """The gradient (B, C, H, W), zero where a step along it would leave the box at once, and (B,)
    its dual norm, above 0.
    """
    stuck = ((x <= 0) & (gradient < 0)) | ((x >= 1) & (gradient > 0))
    free = gradient.masked_fill(stuck, 0)
    scaled, power = of_order_one(free)
    return free, (scaled.flatten(1).norm(p=DUAL[norm], dim=1) * power).clamp_min(_TINY)


def into(delta: Tensor, epsilon: Tensor, norm: str) -> Tensor:
    """Changes (B, C, H, W) projected into balls of radii epsilon (B,)."""
    radius = per_image(epsilon)
    if norm == "linf":
        return delta.minimum(radius).maximum(-radius)
    length = per_image(delta.flatten(1).norm(dim=1)).clamp_min(_TINY)
    return delta * (radius / length).clamp_max(1)


def lengthened(
    radius: Tensor, size: Tensor, epsilon: Tensor, margin: Tensor, gamma: float
) -> Tensor:
    """(B,): radii, but at least a share ``gamma`` more than the iterate's own where the linearised
    boundary would hold it back for good.

    That is where the margin is zero: the boundary goes through the iterate itself. Models whose
    logits are rounded (bfloat16, whole numbers) have such ties in a whole region; others hardly
    ever. And it is where the last ball, which failed, reached as far: pixels at the edge of the box
    do not count in the slope. In L2 the projection draws them back from there, so that they count
    in every other step, and the iterate may swing between two points just before the boundary.

    Args:
        radius: (B,), as far as the linearised boundary, of iterates that are not adversarial.
        size: (B,), how far the iterates are from their images.
        epsilon: (B,), the radii of the last balls; infinite where there was none.
        margin: (B,), of the iterates.
        gamma: the share.
    """
    held = (margin == 0) | ((radius <= epsilon) & epsilon.isfinite())
    return torch.where(held, radius.maximum((1 + gamma) * size.clamp_min(LEAST_STEP)), radius)


def differ(first: Tensor, second: Tensor) -> Tensor:
    """(B,) bool: whether two margins (B,) of the same images are those of different draws."""
    return (first - second).abs() > ROUNDING * first.abs().clamp_min(1)


def tells(gradient: GradientEstimator, source: nn.Module) -> bool:
    """Whether a margin that comes with a gradient is that of the source's answer.

    The estimator has to ask about the image itself, and the source must not fuse losses: the mean
    of its members' margins is not the margin of their mean.
    """
    return gradient.exact and not Queried.of(source).fuses_losses


@dataclass(frozen=True)
class Opening:
    """What there is to attack.

    Attributes:
        left: (n,), indices of the images that are right, or whose model is random.
        random: (n,) bool, for which of these the model is random, as far as it is clear by now.
        margin: (n,), their margins, for a comparison with those of the first gradient; None where
            all is clear.
    """

    left: Tensor
    random: Tensor
    margin: Tensor | None

    @staticmethod
    def of(
        source: nn.Module, images: Tensor, labels: Tensor, gradient: GradientEstimator, rng: Rng
    ) -> Opening:
        """Asks about each image (B, C, H, W) once, and once more where it is wrong or the loss does
        not tell (`tells`).
        """
        queried = Queried.of(source)
        if not tells(gradient, queried):
            logits, random = queried.asked_twice(images, rng)
            left = ((Margin()(logits, labels) <= 0) | random).nonzero().squeeze(1)
            return Opening(left, random[left], None)
        with torch.no_grad():
            margin = Margin()(queried(images, rng.fold(0)), labels)
            random = torch.full_like(margin, queried.random, dtype=torch.bool)
            wrong = ((margin > 0) & ~random).nonzero().squeeze(1)
            if len(wrong):
                again = queried(images[wrong], rng[wrong].fold(1))
                other = differ(margin[wrong], Margin()(again, labels[wrong]))
                random = random.index_copy(0, wrong, other)
        left = ((margin <= 0) | random).nonzero().squeeze(1)
        return Opening(left, random[left], margin[left])


def cost_of(steps: int, gradient: GradientEstimator) -> Cost:
    """What ``steps`` iterates cost where the image is right to begin with, of a deterministic
    source that does not fuse losses.

    An image that is wrong already takes two queries and no gradient.
    """
    queries = 1 if gradient.exact else 2 + steps * (gradient.queries + 1)
    return Cost(gradients=steps * gradient.evaluations, queries=queries)


def cost_on(steps: int, gradient: GradientEstimator, votes: int, source: nn.Module) -> Cost:
    """`cost_of` and, at most, the search on a random model, and a query for each iterate where the
    loss does not tell.
    """
    cost, queried = cost_of(steps, gradient), Queried.of(source)
    asked = 1 + steps if gradient.exact and not tells(gradient, queried) else 0
    searched = TRIES * votes if queried.random else 0
    return cost._replace(queries=cost.queries + asked + searched)


class Nearest:
    """The nearest adversarial iterates so far, and who says what is adversarial.

    On a deterministic model an iterate is adversarial if its margin is positive, and the pass that
    gave the gradient gave the margin, too. An estimator that is not `exact` may not have asked
    about the iterate itself, and the loss of a source that fuses losses is not that of its answer:
    it takes a query.

    On a random model one draw is luck, and the nearest of many iterates that one draw misclassified
    was the luckiest. It says where to go on, no more. An attack that shortens its radius after a
    success and lengthens it after a failure comes to rest where half of the draws are wrong. So
    when it is done, `settle` searches the ray from the image through a mean of its last iterates
    for the least radius at which most of ``votes`` draws are wrong.

    Args:
        source: images (B, C, H, W) in [0, 1] to logits (B, K).
        images: (B, C, H, W).
        labels: (B,).
        opening: what was asked about them already.
        threat: whose norm is minimised.
        gradient: the attack's estimator.
        votes: draws of a random model that judge a point of the ray.

    Attributes:
        points: (B, C, H, W), the nearest adversarial iterates; the images where there is none.
        distance: (B,), how far these are from the images; infinite where there is none.
        random: (B,) bool, for which images the model is random, as far as it is clear by now.
    """

    def __init__(
        self,
        source: nn.Module,
        images: Tensor,
        labels: Tensor,
        opening: Opening,
        threat: Threat,
        gradient: GradientEstimator,
        votes: int,
    ) -> None:
        self.source, self.images, self.labels = source, images, labels
        self.threat, self.votes = threat, votes
        self.random, self._before = opening.random, opening.margin
        self._tells = tells(gradient, source)
        self._fuses_losses = Queried.of(source).fuses_losses
        self._some: bool | None = None
        self._mean, self._weight = torch.zeros_like(images), 0.0
        self.points = images.clone()
        self.distance = images.new_full((len(images),), torch.inf)

    @classmethod
    def found(
        cls,
        minimise: Callable[[Nearest, Rng], None],
        source: nn.Module,
        images: Tensor,
        labels: Tensor,
        threat: Threat,
        gradient: GradientEstimator,
        votes: int,
        rng: Rng,
    ) -> Tensor:
        """(B, C, H, W) within the threat: what ``minimise`` leaves, of images that are not wrong
        already; further arguments as for the class.
        """
        opening = Opening.of(source, images, labels, gradient, rng.fold("ask"))
        result, left = images.clone(), opening.left
        if len(left):
            x = images[left]
            nearest = cls(source, x, labels[left], opening, threat, gradient, votes)
            minimise(nearest, rng[left])
            nearest.settle(rng[left].fold("settle"))
            result[left] = into_ball(threat, nearest.points, x)
        return result

    def note(self, iterates: Tensor, margin: Tensor | None, rng: Rng) -> Tensor:
        """Keep the iterates (B, C, H, W) that are adversarial and nearer than all before.

        Args:
            iterates: in [0, 1]; first of all the images themselves.
            margin: (B,), the largest wrong logit less the label's, in the estimator's pass; None
                where an estimator that does not ask about the image itself gave another value.
            rng: streams of the images, (B,), for a query about an iterate.

        Returns:
            (B,) bool, which iterates are adversarial; on a random model, by one draw.
        """
        if self._before is not None and margin is not None:
            self.random = self.random | differ(self._before, margin)
            self._before = None
        if margin is None or not self._tells:
            above = share_above(
                *(self.source, iterates, Margin(), self.labels, 0.0, self.random),
                *(rng.fold("itself"), 1, False),
            )
            fooled = above > 0.5
            if margin is not None and not self._fuses_losses:
                fooled = torch.where(self.random, ~(margin <= 0), fooled)
        else:  # NaN names no class, and the image itself has one (`Opening.of`)
            fooled = ~(margin <= 0)
        if self._some is None:
            self._some = bool(self.random.any())
        elif self._some:  # x itself, the first iterate, says nothing of a direction
            change = iterates - self.images
            self._mean = torch.lerp(self._mean, change, LATEST)
            self._weight += LATEST * (1 - self._weight)
        distance = self.threat.distance(iterates, self.images)
        # x itself: a draw that is wrong there is luck, and from a radius of 0 none would grow.
        fooled = fooled & (distance > 0)
        closer = fooled & (distance < self.distance)
        self.points = torch.where(per_image(closer), iterates, self.points)
        self.distance = torch.where(closer, distance, self.distance)
        return fooled

    def settle(self, rng: Rng) -> None:
        """Of images whose model is random, take the nearest point of the ray that passes.

        Where none passes at all, the nearest iterate stays that one draw misclassified.

        Args:
            rng: streams of the images, (B,).
        """
        if not self._some or not self._weight:
            return
        majority = Majority(self.source, Margin(), self.labels, 0.0, self.votes)
        change = self._mean / self._weight
        points, there = nearest_on_ray(majority, self.images, change, self.random, rng)
        self.points = torch.where(per_image(there), points, self.points)
        away = self.threat.distance(points, self.images)
        self.distance = torch.where(there, away, self.distance)

    def farthest(self) -> Tensor:
        """(B,): how far the farthest corner of the box is from each image."""
        return self.threat.distance((self.images < 0.5).to(self.images.dtype), self.images)
