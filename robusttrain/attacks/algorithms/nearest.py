"""The nearest adversarial iterate of each image: what attacks that minimise a norm have to keep."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from robusttrain.attacks.parts.gradients import Backprop, GradientEstimator
from robusttrain.attacks.parts.objectives import Margin
from robusttrain.attacks.parts.threats import Threat, per_image
from robusttrain.attacks.queries import share_above
from robusttrain.core.rng import Rng


def annealed(first: float, last: float, k: int, steps: int) -> float:
    """Step k = 0, 1, ... of so many on half a cosine from ``first`` on towards ``last``."""
    return last + (first - last) * (1 + math.cos(math.pi * k / steps)) / 2


class Nearest:
    """The nearest adversarial iterates so far, and who says what is adversarial.

    On a deterministic model an iterate is adversarial if its margin is positive, and the pass that
    gave the gradient gave the margin, too. On a random model one draw is luck, and an estimator
    other than `Backprop` does not ask about the iterate itself: there the majority of fresh draws
    decides, in queries of their own.

    Args:
        source: images (B, C, H, W) in [0, 1] to logits (B, K).
        images: (B, C, H, W).
        labels: (B,).
        random: (B,) bool, for which images the model is random.
        threat: whose norm is minimised.
        gradient: the attack's estimator.
        votes: draws of a random model that judge an iterate.

    Attributes:
        points: (B, C, H, W), the nearest adversarial iterates; the images where there is none.
        distance: (B,), how far these are from the images; infinite where there is none.
    """

    def __init__(
        self,
        source: nn.Module,
        images: Tensor,
        labels: Tensor,
        random: Tensor,
        threat: Threat,
        gradient: GradientEstimator,
        votes: int,
    ) -> None:
        self.source, self.images, self.labels = source, images, labels
        self.random, self.threat, self.votes = random, threat, votes
        noisy = random if isinstance(gradient, Backprop) else torch.ones_like(random)
        self._asked = noisy.nonzero().squeeze(1)
        self.points = images.clone()
        self.distance = images.new_full((len(images),), torch.inf)

    def note(self, iterates: Tensor, margin: Tensor, rng: Rng) -> Tensor:
        """Keep the iterates (B, C, H, W) that are adversarial and nearer than all before.

        Args:
            iterates: in [0, 1].
            margin: (B,), the largest wrong logit less the label's, in the estimator's pass.
            rng: streams of the images, (B,), for votes.

        Returns:
            (B,) bool, which iterates are adversarial.
        """
        fooled = margin > 0
        if len(self._asked):
            which = self._asked
            share = share_above(
                *(self.source, iterates[which], Margin(), self.labels[which], 0.0),
                *(self.random[which], rng[which], self.votes),
            )
            fooled = fooled.index_copy(0, which, share > 0.5)
        distance = self.threat.distance(iterates, self.images)
        closer = fooled & (distance < self.distance)
        self.points = torch.where(per_image(closer), iterates, self.points)
        self.distance = torch.where(closer, distance, self.distance)
        return fooled

    def farthest(self) -> Tensor:
        """(B,): how far the farthest corner of the box is from each image."""
        return self.threat.distance((self.images < 0.5).to(self.images.dtype), self.images)
