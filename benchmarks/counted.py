"""A model that counts what it is asked, image by image, and notes the nearest adversarial point.

Any implementation of any library is measured from outside, and all of them alike: one forward pass
is one query, one backward pass another.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from robusttrain import Rng
from robusttrain.attacks import Threat
from robusttrain.models.defended import DefendedClassifier

#: How far beyond the radius, or the box, rounding may carry a point that counts.
ROUNDING = 1e-5
#: Fresh draws of a random model that judge a point, and count nothing.
VOTES = 10


class BudgetSpentError(Exception):
    """Every image has had its queries: what the attack would still do does not count."""


class Tally:
    """Counts a target's queries for each of n images, and stops the attack when they are spent.

    A batch of n rows is taken for the n images in order. Any other row belongs to the image that is
    nearest, as it was or as it was last asked about.

    A point counts if it lies in [0, 1] and its class is wrong. Of a random target one wrong draw is
    luck, so a majority of `VOTES` fresh draws has to be wrong, too; the attack sees nothing of
    these.

    Args:
        target: images (B, C, H, W) in [0, 1] to logits (B, K).
        images: (n, C, H, W), each with the right class.
        labels: (n,).
        threat: whose norm measures distances.
        budget: queries that each image has.
        radius: an image that fell within this distance needs no more queries; None: all do.

    Attributes:
        spent: (n,), queries of each image so far.
        events: (query, image, distance) of each adversarial point that was nearer than all before.
    """

    def __init__(
        self,
        target: DefendedClassifier,
        images: Tensor,
        labels: Tensor,
        threat: Threat,
        budget: int,
        radius: float | None = None,
    ) -> None:
        self.target, self.images, self.labels = target, images.clone(), labels
        self.threat, self.budget, self.radius = threat, budget, radius
        self.spent = torch.zeros(len(images), dtype=torch.int64)
        self.nearest = torch.full((len(images),), torch.inf)
        self.events: list[tuple[int, int, float]] = []
        self._last = self.images.clone()

    def ask(self, images: Tensor, rng: Rng | None = None) -> Tensor:
        """Logits (B, K) of images (B, C, H, W).

        Raises:
            BudgetSpentError: no image has a query left that would count.
        """
        rows = self.rows(images.detach())
        done = self.spent >= self.budget
        if self.radius is not None:
            done |= self.nearest <= self.radius * (1 + ROUNDING) + ROUNDING
        if done.all():
            raise BudgetSpentError
        self._count(rows)
        logits = self.target(images, rng)
        if logits.requires_grad:
            logits.register_hook(lambda gradient: self._count(rows))
        self._note(images.detach(), rows, logits.detach())
        return logits

    def rows(self, images: Tensor) -> Tensor:
        """(B,): to which image each row of (B, C, H, W) belongs."""
        if len(images) == len(self.images):
            return torch.arange(len(images))
        points = images.flatten(1)
        far = torch.cdist(points, self.images.flatten(1))
        return far.minimum(torch.cdist(points, self._last.flatten(1))).argmin(dim=1)

    def _count(self, rows: Tensor) -> None:
        self.spent += torch.bincount(rows, minlength=len(self.spent))

    @torch.no_grad()
    def _note(self, points: Tensor, rows: Tensor, logits: Tensor) -> None:
        self._last[rows] = points
        distance = self.threat.distance(points, self.images[rows])
        inside = ((points > -ROUNDING) & (points < 1 + ROUNDING)).flatten(1).all(dim=1)
        wrong = (logits.argmax(dim=1) != self.labels[rows]) & ~logits.isnan().any(dim=1)
        counts = wrong & inside & (self.spent[rows] <= self.budget)
        counts &= distance < self.nearest[rows]
        if self.target.random and counts.any():
            counts[counts.clone()] = self._voted(points[counts], rows[counts])
        for place in counts.nonzero().flatten().tolist():
            image, far = int(rows[place]), float(distance[place])
            if far < self.nearest[image]:
                self.nearest[image] = far
                self.events.append((int(self.spent[image]), image, far))

    def _voted(self, points: Tensor, rows: Tensor) -> Tensor:
        """(B,) bool: which points (B, C, H, W) a majority of fresh draws misclassifies."""
        draws = Rng.for_images(1, rows).fold(len(self.events)).fold("judge")
        wrong = [
            self.target(points, draws.fold(number)).argmax(dim=1) != self.labels[rows]
            for number in range(VOTES)
        ]
        return torch.stack(wrong).float().mean(dim=0) > 0.5

    def distances(self, budget: int) -> list[float]:
        """(n,): the least distance of an adversarial point within so many queries; infinite where
        there was none.
        """
        least = [float("inf")] * len(self.images)
        for query, image, distance in self.events:
            if query <= budget:
                least[image] = min(least[image], distance)
        return least


class Dense(torch.autograd.Function):
    """The images, and a gradient that lies in memory as they do: a target in channels_last would
    hand out another, which some libraries cannot reshape.
    """

    @staticmethod
    def forward(ctx: Any, images: Tensor) -> Tensor:
        return images.view_as(images)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return gradient.contiguous()


class Counted(nn.Module):
    """A `Tally`'s target as a model for any library. (Our attacks put back what a model's own
    attributes held before; a tally is none of its tensors and lists.)
    """

    takes_rng = True

    def __init__(self, tally: Tally) -> None:
        super().__init__()
        self.target, self.tally = tally.target, tally

    @property
    def random(self) -> bool:
        """Whether two answers to one image may differ."""
        return self.target.random

    def forward(self, images: Tensor, rng: Rng | None = None) -> Tensor:
        """`Tally.ask`."""
        return self.tally.ask(Dense.apply(images), rng)
