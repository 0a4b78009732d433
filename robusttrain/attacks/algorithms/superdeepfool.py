"""SuperDeepFool: DeepFool to the boundary, then along the boundary's normal from the image."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import torch
from torch import Tensor, nn

from robusttrain.attacks.algorithms.deepfool import DeepFool
from robusttrain.attacks.asking import Queried
from robusttrain.attacks.base import Attack, Cost, times
from robusttrain.attacks.parts.differentiation import of_order_one
from robusttrain.attacks.parts.gradients import Backprop
from robusttrain.attacks.parts.loss import Loss
from robusttrain.attacks.parts.objectives import Margin
from robusttrain.attacks.parts.threats import L2, Threat, into_ball, per_image
from robusttrain.attacks.queries import all_or_none, share_above
from robusttrain.attacks.ray import TRIES, Majority, bisected, held
from robusttrain.core.checked import Count, NonNegative, Whole, checked
from robusttrain.core.rng import Rng


@checked
@dataclass(frozen=True)
class SuperDeepFool(Attack):
    """The attack of Abdolahpourrostam et al. 2024, "SuperDeepFool: a new fast and accurate minimal
    adversarial attack", the variant "SDF".

        x~_i = DeepFool(x_i),  w_i = grad max_{k != y} (f_k - f_y)(x~_i)
        x_{i+1} = x + <x~_i - x, w_i> / |w_i|^2 w_i

    Symbols: x the image, x_0 = x, y its true class, f_k the logit of class k, x~_i a point just
    beyond the boundary, w_i a normal of the boundary there. DeepFool alone ends at *a* point of the
    boundary. At the nearest one, x~ - x is parallel to w. So the step goes to the point of the line
    x + t w_i that is nearest to x~_i, and DeepFool starts anew from there. An image is done as soon
    as that point is misclassified, too. Its nearest misclassified point so far is kept, whichever
    of x~_i and x_{i+1} it was.

    The released code adds each projection to those before it, which leaves that line after the
    first. This class does not.

    Of what is kept, a bisection of the line to the image then finds the nearest misclassified point
    (an option of the released code). On a random model, where one draw is luck, a majority of
    ``votes`` fresh draws judges every point, and the line is searched for one that holds
    (`robusttrain.attacks.ray`).

    The attack returns that point, *projected into the threat* if it is farther than epsilon; the
    projection is adversarial only by luck. For minimal distances take a wide threat. An image comes
    back as it was if it is misclassified from the start, or if nothing is found. Attack in float32.

    Args:
        steps: the most projections for an image.
        inner: the most steps of DeepFool before each of them.
        classes: how many of the likeliest classes DeepFool looks at, y among them.
        overshoot: eta of DeepFool.
        search: queries of the bisection.
        votes: draws of a random model's randomness that judge a point.
        threat: L2, whose ball the result is projected into.
    """

    steps: Count = 10
    inner: Count = 20
    classes: int = 10
    overshoot: NonNegative = 0.02
    search: Whole = 10
    votes: Count = 10
    threat: Threat = field(default_factory=L2)

    by_norm = True

    def __post_init__(self) -> None:
        _ = self.fool  # it refuses what it cannot work with

    @property
    def fool(self) -> DeepFool:
        """What leads across the boundary."""
        return DeepFool(self.inner, self.classes, self.overshoot, self.votes, self.threat)

    @property
    def seeks_nearest(self) -> bool:
        return True

    def scaled(self, effort: float) -> SuperDeepFool:
        return replace(self, steps=times(self.steps, effort))

    def cost(self) -> Cost:
        """An upper bound, in backward passes, as DeepFool counts them."""
        fool = self.fool.cost()
        # Without DeepFool's two passes over the clean image; its votes there judge x_{i+1} here.
        return Cost(
            gradients=self.steps * (fool.gradients + 1),
            queries=2
            + self.votes
            + self.steps * (fool.queries - 2)
            + max(self.search, TRIES * self.votes),
        )

    def run(self, source: nn.Module, images: Tensor, labels: Tensor, rng: Rng) -> Tensor:
        logits, random = Queried.of(source).asked_twice(images, rng.fold("ask"))
        fool = self.fool
        rivals, alike = fool.rivals(logits, labels), all_or_none(random)
        nearest, found = images.new_full((len(images),), torch.inf), images.clone()

        def share_wrong(points: Tensor, which: Tensor, streams: Rng) -> Tensor:
            asked = (points, Margin(), labels[which], 0.0, random[which])
            return share_above(source, *asked, streams, self.votes, alike)

        everyone = torch.arange(len(images), device=images.device)
        left = everyone[share_wrong(images, everyone, rng.fold("clean")) < 1]
        x = images.clone()
        for i in range(self.steps):
            if not len(left):
                break
            streams, origin = rng[left].fold(i), images[left]
            there = (labels[left], rivals[left], torch.ones_like(left, dtype=torch.bool))
            draws = (random[left], alike, streams.fold("fool"))
            beyond, crossed = fool.crossed(source, x[left], *there, *draws)
            _, w = Backprop()(Loss(source, Margin(), labels[left]), beyond, streams)
            w, _ = of_order_one(w.to(x.dtype).nan_to_num(0, 0, 0))
            along = ((beyond - origin) * w).flatten(1).sum(dim=1)
            square = w.flatten(1).square().sum(dim=1)
            shift = torch.where(square > 0, along / square, 0)
            x[left] = (origin + per_image(shift) * w).clamp(0, 1)
            done = share_wrong(x[left], left, streams.fold("judge")) > 0.5
            for points, wrong in ((beyond, crossed), (x[left], done)):
                distance = self.threat.distance(points, origin)
                closer = wrong & (distance < nearest[left])
                found[left] = torch.where(per_image(closer), points, found[left])
                nearest[left] = torch.where(closer, distance, nearest[left])
            left = left[~done]
        found = self._bisected(source, images, found, labels, random, rng.fold("search"))
        if alike is False:
            return into_ball(self.threat, found, images)
        majority = Majority(source, Margin(), labels, 0.0, self.votes)
        return held(majority, self.threat, images, found, random, rng.fold("settle"))

    def _bisected(
        self,
        source: nn.Module,
        images: Tensor,
        found: Tensor,
        labels: Tensor,
        random: Tensor,
        rng: Rng,
    ) -> Tensor:
        """The nearest misclassified point between each image and what was found, (B, C, H, W); on a
        random model, what was found.
        """
        moved = ~random & (found != images).flatten(1).any(dim=1)
        which = moved.nonzero().squeeze(1)
        if not len(which):
            return found
        x, end = images[which], found[which]

        def wrong(share: Tensor, k: int) -> Tensor:
            points = torch.lerp(x, end, per_image(share))
            asked = (source, points, Margin(), labels[which], 0.0, random[which])
            return share_above(*asked, rng[which].fold(k), 1, False) > 0.5

        share = bisected(wrong, x.new_ones(len(x)), self.search)
        return found.index_copy(0, which, torch.lerp(x, end, per_image(share)))
