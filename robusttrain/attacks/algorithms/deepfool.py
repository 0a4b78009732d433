"""DeepFool: to the nearest boundary of the linearised model, again and again."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor, nn

from robusttrain.attacks.asking import Queried, call_model
from robusttrain.attacks.base import Attack, Cost, times
from robusttrain.attacks.parts.differentiation import input_gradients, of_order_one
from robusttrain.attacks.parts.gradients import NO_GRADIENT
from robusttrain.attacks.parts.objectives import Margin
from robusttrain.attacks.parts.threats import L2, Threat, into_ball, per_image
from robusttrain.attacks.queries import all_or_none, share_above
from robusttrain.attacks.rounding import BEYOND_TIE, LEAST_STEP
from robusttrain.core.checked import Count, NonNegative, checked
from robusttrain.core.errors import OptionError, UserError, at_least
from robusttrain.core.rng import Rng

#: Added to the length of each step, so that a point on a boundary still moves (as released).
BEYOND = 1e-4


@checked
@dataclass(frozen=True)
class DeepFool(Attack):
    """The attack of Moosavi-Dezfooli et al. 2016, "DeepFool: a simple and accurate method ...",
    algorithm 2.

        f'_k = f_k(x_i) - f_y(x_i),  w'_k = grad f_k(x_i) - grad f_y(x_i)
        l = argmin_{k != y} |f'_k| / |w'_k|_2
        r_i = |f'_l| / |w'_l|_2^2 w'_l,  x_{i+1} = x + (1 + eta) (r_0 + ... + r_i)

    Symbols: x the image, x_i the point after i steps, f_k its logit of class k, y its true class, k
    the classes that are likeliest for x, eta the overshoot. As in the released code the overshoot
    is part of every x_i and each step is lengthened by 1e-4; x_i is clipped to the box. An image
    leaves the batch as soon as it is misclassified.

    All images advance together: a step is one forward pass of the batch and one backward pass of
    the batch for each class, so memory does not grow with the number of classes.

    The attack returns x_i of the last step, *projected into the threat* if it is farther than
    epsilon; the projection is adversarial only by luck. For minimal distances take a wide threat.
    An image that is misclassified from the start comes back as it was. The result lies just beyond
    the boundary, by the overshoot. Attack in float32: a source in bfloat16 has another boundary.

    On a random model (two passes over the clean image tell) a step linearises one draw. The
    majority of ``votes`` fresh draws decides whether the step has succeeded, and an image is left
    alone only if all draws get it wrong.

    Args:
        steps: the most steps for an image.
        classes: how many of the likeliest classes are looked at, y among them.
        overshoot: eta.
        votes: draws of a random model's randomness that judge a point.
        threat: L2, whose ball the result is projected into.
    """

    steps: Count = 50
    classes: int = 10
    overshoot: NonNegative = 0.02
    votes: Count = 10
    threat: Threat = field(default_factory=L2)

    by_norm = True

    def __post_init__(self) -> None:
        at_least("classes", self.classes, 2)
        if self.threat.norm != "l2":
            raise OptionError("threat", self.threat, "must be L2, the norm that is minimised")

    def scaled(self, effort: float) -> DeepFool:
        return replace(self, steps=times(self.steps, effort))

    def cost(self) -> Cost:
        """An upper bound, in backward passes. The classes of a step share one forward pass, and an
        engine counts that as one evaluation.
        """
        return Cost(
            gradients=self.steps * (self.classes - 1), queries=2 + self.votes * (1 + self.steps)
        )

    def run(self, source: nn.Module, images: Tensor, labels: Tensor, rng: Rng) -> Tensor:
        logits, random = Queried.of(source).asked_twice(images, rng.fold("ask"))
        rivals, alike = self.rivals(logits, labels), all_or_none(random)
        asked = (images, Margin(), labels, 0.0, random, rng.fold("clean"), self.votes, alike)
        attacked = share_above(source, *asked) < 1
        point = self.crossed(source, images, labels, rivals, attacked, random, alike, rng)[0]
        return into_ball(self.threat, point, images)

    def crossed(
        self,
        source: nn.Module,
        start: Tensor,
        labels: Tensor,
        rivals: Tensor,
        attacked: Tensor,
        random: Tensor,
        alike: bool | None,
        rng: Rng,
    ) -> tuple[Tensor, Tensor]:
        """The steps from ``start`` (B, C, H, W) on, wherever they lead.

        Args:
            source: images to logits.
            start: x_0 of each image.
            labels: (B,).
            rivals: (B, k), the wrong classes that are looked at.
            attacked: (B,) bool, which images move at all.
            random: (B,) bool, for which images the model is random.
            alike: as for `robusttrain.attacks.queries.by_draws`.
            rng: streams of the images, (B,).

        Returns:
            The last points (B, C, H, W), and (B,) bool: where such a step led beyond the boundary.
        """
        moved, point = torch.zeros_like(start), start.clone()
        left = attacked.nonzero().squeeze(1)
        for i in range(self.steps):
            if not len(left):
                break
            so_far = moved[left].flatten(1).norm(dim=1)
            asked = (point[left], labels[left], rivals[left], so_far, rng[left].fold(i))
            moved[left] += self.step(source, *asked)
            point[left] = (start[left] + (1 + self.overshoot) * moved[left]).clamp(0, 1)
            judged = (point[left], Margin(), labels[left], 0.0, random[left])
            judges = rng.fold(i).fold("judge")[left]
            left = left[share_above(source, *judged, judges, self.votes, alike) <= 0.5]
        return point, attacked.index_fill(0, left, False)

    def rivals(self, logits: Tensor, labels: Tensor) -> Tensor:
        """(B, classes - 1): the likeliest wrong classes, likeliest first."""
        count = min(self.classes, logits.shape[1]) - 1
        return logits.scatter(1, labels[:, None], -torch.inf).topk(count, dim=1).indices

    def step(
        self,
        source: nn.Module,
        points: Tensor,
        labels: Tensor,
        rivals: Tensor,
        so_far: Tensor,
        rng: Rng,
    ) -> Tensor:
        """r_i (B, C, H, W), after steps that together are ``so_far`` (B,) long; zero for images
        that have no gradient.
        """
        position = rng.position

        def differences(x: Tensor) -> Sequence[Tensor]:
            rng.position = position
            logits = call_model(source, x, rng)
            return (logits.gather(1, rivals) - logits.gather(1, labels[:, None])).unbind(dim=1)

        r, nearest = torch.zeros_like(points), points.new_full((len(points),), torch.inf)
        at_tie = (BEYOND_TIE * so_far).clamp_min(LEAST_STEP)
        for f_k, w_k in input_gradients(differences, points):
            if w_k is None:
                raise UserError(NO_GRADIENT)
            w_k, power = of_order_one(w_k)
            length = w_k.flatten(1).norm(dim=1)
            distance = (f_k / power).abs() / length
            nearer = distance < nearest  # never where the gradient is zero or NaN
            nearest = torch.where(nearer, distance, nearest)
            length_of_r = torch.where(distance > 0, distance + BEYOND, at_tie)
            r = torch.where(per_image(nearer), per_image(length_of_r / length) * w_k, r)
        return r
