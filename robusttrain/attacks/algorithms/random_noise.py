"""Random noise within the threat, many times: what every attack must beat."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import torch
from torch import Tensor, nn

from robusttrain.attacks.answers import names_a_class
from robusttrain.attacks.asking import Queried
from robusttrain.attacks.base import LEAST_QUERIES, Attack, Cost, times
from robusttrain.attacks.parts.objectives import Margin
from robusttrain.attacks.parts.threats import Linf, Threat, per_image
from robusttrain.attacks.queries import all_or_none, ask, by_draws, mean_margin
from robusttrain.core.checked import Count, checked
from robusttrain.core.errors import OptionError
from robusttrain.core.rng import Rng


@checked
@dataclass(frozen=True)
class RandomNoise(Attack):
    """The worst of many random points of the ball (Carlini et al. 2019, "On evaluating adversarial
    robustness", 4.3).

    A model that falls to noise is not robust; an attack that finds less than noise does not work.
    The "worst" point has the largest margin max_{i != y} z_i - z_y. A model may not say whether it
    is random; the first two queries, on the image itself, then tell.

    - On a deterministic model an image leaves as soon as it is misclassified, at once if it is
      misclassified as it stands. A point of which the model names no class, though it names one of
      the image, is misclassified.
    - On a random model the largest of many noisy estimates is luck. So margins are means over
      ``votes`` draws, and each new point is compared with the best so far on the same, new draws.
      One point costs 2 ``votes`` queries.

    Args:
        queries: the most forward passes for an image, everything counted.
        votes: draws that judge a point of a random model.
        threat: the ball that points are drawn from, uniformly.
    """

    queries: int = 5000
    votes: Count = 10
    threat: Threat = field(default_factory=Linf)

    def __post_init__(self) -> None:
        if not self.queries >= 2 + 2 * self.votes:
            raise OptionError(
                "queries", self.queries, f"must be at least 2 + 2 votes = {2 + 2 * self.votes}"
            )

    def scaled(self, effort: float) -> RandomNoise:
        least = max(LEAST_QUERIES, 2 + 2 * self.votes)
        return replace(self, queries=times(self.queries, effort, least))

    def with_draws(self, least: int) -> RandomNoise:
        # As many points of a random model as before: each costs its votes.
        votes = max(2 * self.votes, least)
        points = (self.queries - 2) // (2 * self.votes)
        return replace(self, votes=votes, queries=max(self.queries, 2 + 2 * votes * points))

    def cost(self) -> Cost:
        """An upper bound: images leave when they are misclassified."""
        return Cost(gradients=0, queries=self.queries)

    def run(self, source: nn.Module, images: Tensor, labels: Tensor, rng: Rng) -> Tensor:
        logits, random = Queried.of(source).asked_twice(images, rng.fold("ask"))
        best, named = images.clone(), names_a_class(logits)
        highest = best.new_full((len(images),), -torch.inf)
        wrong, alike = ~random & (Margin()(logits, labels) > 0), all_or_none(random)
        everyone = torch.arange(len(images), device=images.device)
        # A random model is out of queries long before the others.
        rounds = (self.queries - 2) // (2 * self.votes)
        for i in range(rounds if alike else self.queries - 2):
            if alike:  # no image leaves, and the host need not wait for the device
                left = everyone
            else:
                asked = random if i < rounds else torch.zeros_like(random)
                left = ((asked | ~random) & ~wrong).nonzero().squeeze(1)
            if not len(left):
                break
            point = self.threat.random_start(images[left], rng[left].fold(i).fold("noise"))
            streams, judged = rng[left].fold(i).fold("model"), random[left]
            of = labels[left], named[left]
            margin = self.margin(source, point, *of, judged, streams, alike)
            rival = highest[left]
            if alike is not False:  # the best point so far is judged anew
                which = slice(None) if alike else judged.nonzero().squeeze(1)
                there = left[which]
                if len(there):
                    of = labels[there], named[there]
                    rival[which] = self.margin(
                        source, best[there], *of, judged[which], streams[which], True
                    )
            better = margin > rival
            best[left] = torch.where(per_image(better), point, best[left])
            highest[left] = torch.where(better, margin, rival)
            wrong[left] = ~judged & (highest[left] > 0)
        return best

    def margin(
        self,
        source: nn.Module,
        points: Tensor,
        labels: Tensor,
        named: Tensor,
        random: Tensor,
        rng: Rng,
        alike: bool | None,
    ) -> Tensor:
        """(B,): the `mean_margin`, over one draw or ``votes``; ``alike`` as for `by_draws`."""
        mean_margins = points.new_full((len(points),), -torch.inf)
        for which, votes in by_draws(random, self.votes, alike):
            logits = ask(source, points[which], rng[which], votes)
            mean_margins[which] = mean_margin(logits, labels[which], named[which])
        return mean_margins
