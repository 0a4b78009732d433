"""HopSkipJump: the nearest adversarial image by labels alone."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from robusttrain.attacks.asking import Queried
from robusttrain.attacks.base import Attack, Cost, times
from robusttrain.attacks.parts.gradients import mean_over_copies
from robusttrain.attacks.parts.threats import Linf, Threat, into_ball, per_image
from robusttrain.attacks.queries import share_wrong
from robusttrain.attacks.ray import bisected
from robusttrain.core.checked import Count, NonNegative, Positive, Whole, checked
from robusttrain.core.errors import OptionError, at_least
from robusttrain.core.rng import Rng

#: Places on the way from the nearest point (0) to the rim of the ball (1) that may be the result,
#: farthest first.
WAYS = (1.0, 0.5, 0.25, 0.125, 0.0625, 0.03125, 0.0)
#: Places on the way back from the boundary (0) where a second vote is taken on random models, until
#: one agrees.
BACK = (0.0, 0.0625, 0.125, 0.25, 0.5, 1.0)
#: "Well within the threat", in units of epsilon.
WITHIN = 0.95


def blend(images: Tensor, adversarial: Tensor, share: Tensor) -> Tensor:
    """The point at ``share`` (B,) of the way, 0 the image and 1 the adversarial one."""
    return torch.lerp(images, adversarial, per_image(share))


def clip_around(images: Tensor, adversarial: Tensor, radius: Tensor) -> Tensor:
    """``adversarial`` with every pixel within ``radius`` (B,) of the image's."""
    return adversarial.maximum(images - per_image(radius)).minimum(images + per_image(radius))


@checked
@dataclass(frozen=True)
class HopSkipJump(Attack):
    """Decision-based search for the nearest adversarial image (Chen, Jordan & Wainwright 2020,
    algorithm 2).

    Symbols: x the image, y its label, d its number of pixel values, phi(x') = 1 where x' is
    misclassified and -1 where not; x_t the point after step t = 1, 2, ..., on the adversarial side
    of the boundary; u_b random directions of length 1, standard normal (L2) or uniform in a cube
    (Linf) before they are scaled. Each step

    1. estimates the normal of the boundary at x_t from B_t = ``evaluations`` sqrt(t) answers, less
      their mean::

           v = 1/(B_t - 1) sum_b (phi(x_t + delta_t u_b) - mean of phi) u_b

       with delta_t = gamma / d times the distance that step t - 1 reached before its binary search
       (0.1 in the first step, as in the released code); only the direction of v counts: v / |v|_2
       (L2) or sign v (Linf);
    2. walks to x_t + xi v, with xi = |x_t - x| / sqrt(t) halved until the point is adversarial;
    3. returns to the boundary by a binary search between that point and x: along the line (L2), or
       by clipping to ever smaller cubes (Linf), until within gamma / d^(3/2) (L2) or gamma / d^2
       (Linf) of the way.

    The start is uniform noise, blended with x by a binary search. To a network pixelwise noise
    tends to look like one class, and images of that class would never find a start. So each further
    try takes noise of another coarseness.

    The attack returns a point inside the threat. If the nearest adversarial point is farther than
    epsilon, its projection comes back, which is adversarial only by luck. If it is nearer, the
    attack uses the room that is left: at the boundary the next rounding, or the next draw of a
    random model, decides. So points on the line from the nearest point on to the rim of the ball
    are asked about too, and the one that is wrong in most draws comes back, of equals the farthest.
    For minimal distances, set ``nearest`` and a wide threat. An image comes back as it was where
    the search fails, and where it is misclassified already.

    On a random model (`Queried.random`) a verdict is the majority of ``votes`` draws. Two things
    keep flickering verdicts from misleading the search. First, a point counts only if a second vote
    confirms it, else lucky draws would lead the search to the image itself. Without a confirmation,
    points farther back are asked about. Second, the estimate of v takes one draw for each
    direction: averaging over directions averages over draws too, and new directions tell more. With
    the paper's gamma = 1 all x_t + delta_t u_b lie so close together that the draws drown the
    answers. So the default there is gamma = d, which makes delta_t as large as the distance. An
    image that is misclassified already is left alone only if all ``votes`` draws agree.
    (PopSkipJump, Simon-Gabriel et al. 2021, goes further: it measures the noise, and chooses the
    numbers of draws and delta by it.)

    Args:
        steps: number of steps; the paper and its code take 40 to 64. 0 returns the blended noise.
        evaluations: B_1; step t takes ``evaluations`` sqrt(t).
        most_evaluations: bound of B_t.
        gamma: scale of delta_t and of the binary searches' tolerance; None for the paper's 1, on
            random models d. Rough models and low precision need more than 1.
        tries: noise images tried for a start.
        halvings: values of xi tried in each step; if no point is adversarial, x_t stays.
        search_steps: bound of each binary search; a float32 holds no more than 24 halvings.
        votes: draws of a random model's randomness behind each verdict; of no use for a
            deterministic one.
        until_inside: whether an image leaves as soon as its point lies well within the threat (95 %
            of epsilon). Saves queries where only the verdict within the threat counts; on random
            models it changes nothing.
        nearest: whether the nearest point comes back, instead of one that uses the ball.
        clearance: how far the nearest point is moved across the boundary, as a share of its
            distance; 0 for not at all. A hundredth keeps it adversarial under the rounding of
            another kernel or of a copy with folded layers.
        chunk: directions evaluated at once; None for as many as make a batch of 256 images, fewer
            if large.
        threat: whose norm is minimised, Linf or L2, and whose ball the result is projected into.
    """

    steps: Whole = 64
    evaluations: int = 100
    most_evaluations: int = 10_000
    gamma: Positive | None = None
    tries: Count = 100
    halvings: Count = 20
    search_steps: Count = 24
    votes: Count = 1
    until_inside: bool = False
    nearest: bool = False
    clearance: NonNegative = 0.01
    chunk: Count | None = None
    threat: Threat = field(default_factory=Linf)

    by_norm = True

    def __post_init__(self) -> None:
        at_least("evaluations", self.evaluations, 2)
        at_least("most_evaluations", self.most_evaluations, 2)
        if self.threat.norm not in ("linf", "l2"):
            raise OptionError("threat", self.threat, "must be Linf or L2")

    def gamma_for(self, source: nn.Module, images: Tensor) -> float:
        """gamma, or its default for this source where it is None."""
        if self.gamma is not None:
            return self.gamma
        return float(images[0].numel()) if Queried.of(source).random else 1.0

    def evaluations_at(self, t: int) -> int:
        """B_t."""
        return min(int(self.evaluations * math.sqrt(t)), self.most_evaluations)

    @property
    def seeks_nearest(self) -> bool:
        return self.nearest

    def scaled(self, effort: float) -> HopSkipJump:
        return replace(self, steps=times(self.steps, effort))

    def cost(self) -> Cost:
        """An upper bound: searches end early where they can, and deterministic models need no
        second vote.
        """
        # The image, noise, two searches, confirmed
        verdicts = 1 + self.tries + 2 * self.search_steps + len(BACK)
        verdicts += self.steps * (self.halvings + self.search_steps + len(BACK))
        verdicts += int(self.clearance > 0) if self.nearest else len(WAYS)
        return Cost(
            gradients=0,
            queries=self.votes * verdicts
            + sum(self.evaluations_at(t) for t in range(1, self.steps + 1)),
        )

    def run(self, source: nn.Module, images: Tensor, labels: Tensor, rng: Rng) -> Tensor:
        result = images.clone()
        wrong = share_wrong(source, images, labels, rng.fold("clean"), self.votes)
        keep = (wrong < 1).nonzero().squeeze(1)
        start, started = self.noise(source, images[keep], labels[keep], rng[keep].fold("noise"))
        keep, start = keep[started], start[started]
        if len(keep):
            x, y, streams = images[keep], labels[keep], rng[keep]
            best = self.minimise(source, start, x, y, streams)
            result[keep] = self.settle(source, best, x, y, streams.fold("settle"))
        return result

    def verdict(self, source: nn.Module, points: Tensor, labels: Tensor, rng: Rng) -> Tensor:
        """(B,) bool: whether a majority of draws is wrong; a tie is no majority."""
        return share_wrong(source, points, labels, rng, self.votes) > 0.5

    def noise(
        self, source: nn.Module, images: Tensor, labels: Tensor, rng: Rng
    ) -> tuple[Tensor, Tensor]:
        """Misclassified noise (B, C, H, W), and (B,) bool: for which images there is any."""
        channels, height, width = images.shape[1:]
        scales = max(1, min(height, width).bit_length() - 1)

        def propose(k: int, left: Tensor) -> Tensor:
            cell = 2 ** (k % scales)
            cells = (
                rng[left]
                .fold(k)
                .fold("cells")
                .uniform((channels, -(-height // cell), -(-width // cell)))
            )
            grown = cells.repeat_interleave(cell, dim=2).repeat_interleave(cell, dim=3)
            return grown[:, :, :height, :width].to(images.dtype)

        return self.first_adversarial(source, images, propose, self.tries, labels, rng)

    def minimise(
        self, source: nn.Module, start: Tensor, images: Tensor, labels: Tensor, rng: Rng
    ) -> Tensor:
        """The loop, from an adversarial ``start`` (B, C, H, W) to the nearest adversarial point."""
        random, pixels = Queried.of(source).random, images[0].numel()
        gamma, one = self.gamma_for(source, images), images.new_ones(len(images))
        point = self.search(source, start, images, labels, rng.fold("blend"), blend, one)
        reach = self.threat.distance(point, images)
        if self.threat.norm == "linf":
            point = self.search(source, point, images, labels, rng.fold("clip"), clip_around, reach)
        if random:
            # The noise itself remains where no vote agrees: it is not near, but it was seen to
            # fool.
            point = self.confirm(source, point, start, labels, rng.fold("confirm"))[0]
        best, nearest = point.clone(), self.threat.distance(point, images)

        here: Tensor | slice = slice(None)  # the images that are still searched
        for t in range(1, self.steps + 1):
            if self.until_inside and not random:
                here = (nearest > WITHIN * self.threat.epsilon).nonzero().squeeze(1)
                if not len(here):
                    break
            x, y, x_t, streams = images[here], labels[here], point[here], rng[here].fold(t)
            distance = self.threat.distance(x_t, x)
            delta = torch.full_like(distance, 0.1) if t == 1 else gamma / pixels * reach[here]
            v = self.normal(source, x_t, y, delta, self.evaluations_at(t), streams.fold("normal"))
            proposal, moved = self.walk(
                source, x_t, v, distance / math.sqrt(t), y, streams.fold("walk")
            )
            reach[here], walked = self.threat.distance(proposal, x), proposal
            cubes = self.threat.norm == "linf"
            between, high = (clip_around, reach[here]) if cubes else (blend, one[here])
            proposal = self.search(source, proposal, x, y, streams.fold("search"), between, high)
            if random:
                proposal, holds = self.confirm(source, proposal, walked, y, streams.fold("confirm"))
                moved = moved & holds
            point[here] = torch.where(per_image(moved), proposal, x_t)
            distance = self.threat.distance(proposal, x)
            closer = moved & (distance < nearest[here])
            best[here] = torch.where(per_image(closer), proposal, best[here])
            nearest[here] = torch.where(closer, distance, nearest[here])
        return best

    def search(
        self,
        source: nn.Module,
        adversarial: Tensor,
        images: Tensor,
        labels: Tensor,
        rng: Rng,
        between: Callable[[Tensor, Tensor, Tensor], Tensor],
        high: Tensor,
    ) -> Tensor:
        """Binary search from ``adversarial`` = between(.., high) towards the image = between(..,
        0), (B, C, H, W).

        Returns the last point that was adversarial, ``adversarial`` itself if none was.
        """
        pixels, first = images[0].numel(), high
        tolerance = self.gamma_for(source, images) / pixels ** (
            1.5 if self.threat.norm == "l2" else 2
        )

        def wrong(share: Tensor, k: int) -> Tensor:
            return self.verdict(source, between(images, adversarial, share), labels, rng.fold(k))

        halvings = min(self.search_steps, max(1, math.ceil(-math.log2(tolerance))))
        high = bisected(wrong, high, halvings)
        # Not between(.., first), which rounding may have moved across the boundary.
        return torch.where(per_image(high < first), between(images, adversarial, high), adversarial)

    def normal(
        self,
        source: nn.Module,
        points: Tensor,
        labels: Tensor,
        delta: Tensor,
        evaluations: int,
        rng: Rng,
    ) -> Tensor:
        """v of step 1, scaled for a step of length 1 in the threat's norm, (B, C, H, W)."""
        directions, draws = rng.fold("direction"), rng.fold("draw")
        # Closer than this, float32 pixels no longer tell the points apart.
        delta = delta.clamp_min(1e-7 * math.sqrt(points[0].numel()))

        def ask(numbers: range) -> tuple[Tensor, Tensor]:
            copies, streams = len(numbers), directions.tile(numbers)
            shape = points.shape[1:]
            noise = (
                streams.normal(shape) if self.threat.norm == "l2" else streams.uniform(shape, -1, 1)
            )
            u = F.normalize(noise.flatten(1)).view_as(noise)
            x_t, far = points.repeat(copies, 1, 1, 1), per_image(delta.repeat(copies))
            asked = (x_t + far * u).clamp(0, 1)
            u = (asked - x_t) / far  # what the box and rounding left of u
            phi = 2 * share_wrong(source, asked, labels.repeat(copies), draws.tile(numbers)) - 1
            return phi, torch.cat([per_image(phi) * u, u], dim=1)

        # The mean of (phi - mean phi) u is the mean of phi u less the product of the means: one
        # pass is enough.
        baseline, means = mean_over_copies(evaluations, self.chunk, points, ask)
        mean_of_product, mean_of_u = means.chunk(2, dim=1)
        # Where all answers agree, the baseline would leave nothing.
        baseline = torch.where(baseline.abs() == 1, 0, baseline)
        v = mean_of_product - per_image(baseline) * mean_of_u
        return v.sign() if self.threat.norm == "linf" else F.normalize(v.flatten(1)).view_as(v)

    def walk(
        self, source: nn.Module, points: Tensor, v: Tensor, length: Tensor, labels: Tensor, rng: Rng
    ) -> tuple[Tensor, Tensor]:
        """The first adversarial point of x_t + xi v, xi = length, length/2, ..., else x_t.

        Returns:
            The points (B, C, H, W), and (B,) bool: for which images one is adversarial.
        """

        def propose(k: int, left: Tensor) -> Tensor:
            return (points[left] + per_image(length[left] / 2**k) * v[left]).clamp(0, 1)

        return self.first_adversarial(source, points, propose, self.halvings, labels, rng)

    def confirm(
        self, source: nn.Module, near: Tensor, away: Tensor, labels: Tensor, rng: Rng
    ) -> tuple[Tensor, Tensor]:
        """The first point that a vote confirms on the way from ``near`` back to ``away``, else
        ``away``.

        Returns:
            The points (B, C, H, W), and (B,) bool: which of them a vote confirmed.
        """

        def propose(k: int, left: Tensor) -> Tensor:
            return torch.lerp(near[left], away[left], BACK[k])

        return self.first_adversarial(source, away, propose, len(BACK), labels, rng)

    def first_adversarial(
        self,
        source: nn.Module,
        otherwise: Tensor,
        propose: Callable[[int, Tensor], Tensor],
        tries: int,
        labels: Tensor,
        rng: Rng,
    ) -> tuple[Tensor, Tensor]:
        """The first adversarial one of several points for each image.

        Args:
            source, labels, rng: as for `run`.
            otherwise: (B, C, H, W), what images without such a point get.
            propose: from k and the numbers (n,) of some images to their points k, (n, C, H, W).
            tries: how many points there are.

        Returns:
            The points (B, C, H, W), and (B,) bool: for which images one is adversarial.
        """
        result, left = otherwise.clone(), torch.arange(len(otherwise), device=otherwise.device)
        for k in range(tries):
            if not len(left):
                break
            points = propose(k, left)
            wrong = self.verdict(source, points, labels[left], rng[left].fold(k))
            result[left] = torch.where(per_image(wrong), points, result[left])
            left = left[~wrong]
        succeeded = torch.ones(len(result), dtype=torch.bool, device=result.device)
        succeeded.index_fill_(0, left, False)
        return result, succeeded

    def settle(
        self, source: nn.Module, best: Tensor, images: Tensor, labels: Tensor, rng: Rng
    ) -> Tensor:
        """The result for the nearest point ``best``: inside the threat, and clear of the boundary
        if there is room.
        """
        distance = self.threat.distance(best, images)
        projected = into_ball(self.threat, best, images)
        if self.nearest:
            if not self.clearance:
                return projected
            clear = into_ball(
                self.threat, torch.lerp(images, best, 1 + self.clearance).clamp(0, 1), images
            )
            holds = self.verdict(source, clear, labels, rng)
            return torch.where(per_image(holds), clear, projected)
        stretch = (
            self.threat.epsilon / distance.clamp_min(torch.finfo(distance.dtype).tiny)
        ).clamp(1, 1e6)
        rim = self.threat.project(images + (best - images) * per_image(stretch), images)
        result, most = rim, torch.full_like(distance, -1)
        for k, way in enumerate(WAYS):
            point = torch.lerp(projected, rim, way)
            wrong = share_wrong(source, point, labels, rng.fold(k), self.votes)
            result = torch.where(per_image(wrong > most), point, result)
            most = torch.maximum(most, wrong)
        return result
