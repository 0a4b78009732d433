"""FAB: steps to the linearised boundary of one class after another, as near to the image as can
be.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from itertools import product

import torch
from torch import Tensor, nn

from robusttrain.attacks.asking import Queried
from robusttrain.attacks.base import Attack, Cost, times
from robusttrain.attacks.parts.differentiation import of_order_one
from robusttrain.attacks.parts.gradients import Backprop, GradientEstimator
from robusttrain.attacks.parts.loss import Loss
from robusttrain.attacks.parts.objectives import Margin, Objective, rank_targets
from robusttrain.attacks.parts.threats import Linf, Threat, into_ball, need_norm, per_image
from robusttrain.attacks.queries import all_or_none, by_draws, share_wrong
from robusttrain.attacks.ray import TRIES, Majority, held
from robusttrain.attacks.rounding import BEYOND_TIE, LEAST_STEP
from robusttrain.core.checked import Count, Share, checked
from robusttrain.core.errors import at_least
from robusttrain.core.rng import Rng

#: The least length of a step when two steps are compared (as released); 0 / 0 is no ratio.
LEAST = 1e-8
_TINY = torch.finfo(torch.float32).tiny
#: Draws of a random model that judge a point of the last search, at least.
VOTES = 10
#: Rounds of `step` where the host should not wait; images of 150,528 pixels need up to nine.
_ROUNDS = 16


@dataclass(frozen=True)
class _Difference(Objective):
    """z_t - z_y, for goals (y, t), (B, 2): zero on the boundary between two classes."""

    def __call__(self, logits: Tensor, goal: Tensor) -> Tensor:
        pair: Tensor = logits.gather(1, goal)
        return pair[:, 1] - pair[:, 0]


def to_hyperplane(points: Tensor, value: Tensor, gradient: Tensor, norm: str) -> Tensor:
    """The shortest step from each point to where its linear function is zero, without leaving the
    box [0, 1].

    With w the gradient and f the function's value at the point, the step in pixel j is
    s sign(w_j) min(lambda v_j, room_j): s turns the step towards zero, v_j is 1 (Linf) or |w_j|
    (L2), room_j how far the pixel may go. lambda is the smallest for which the gains
    |w_j| min(lambda v_j, room_j) add up to |f| (Croce & Hein 2020, section 2.2). Their sum is
    concave in lambda, and linear between the values at which one more pixel meets the box. So
    Newton's method comes to lambda from below in a few rounds: each takes the pixels that have met
    the box for what they contribute, and solves for the others. (The paper sorts these values,
    which takes longer than all rounds together.) Pixels that have met the box have met it for all
    greater lambda, so there are no more rounds than pixels.

    Args:
        points: (B, C, H, W), in [0, 1].
        value: (B,), f.
        gradient: (B, C, H, W), w.
        norm: the norm in which the step is shortest, "linf" or "l2".

    Returns:
        (B, C, H, W), steps. If the box holds no zero, the step to the corner nearest to a zero.
    """
    w, x = gradient.flatten(1), points.flatten(1)
    towards = -value.sign()[:, None] * w.sign()
    room = torch.where(towards > 0, 1 - x, x)
    weight = w.abs()
    v = torch.ones_like(weight) if norm == "linf" else weight
    distance, spent, rate = value.abs(), weight * room, weight * v
    lambda_ = distance / rate.sum(dim=1).clamp_min(_TINY)
    # A round too many changes nothing. To ask whether there is one more costs nothing on the CPU,
    # and elsewhere more than the rounds themselves: the host would wait for the device.
    on_cpu = points.device.type == "cpu"
    for _ in range(weight.shape[1] if on_cpu else _ROUNDS):
        met = lambda_[:, None] * v >= room
        missing = distance - torch.where(met, spent, 0).sum(dim=1)
        # No rate is left where the box holds no zero: lambda then exceeds all bounds.
        further = missing / torch.where(met, 0, rate).sum(dim=1).clamp_min(_TINY)
        if on_cpu and not (further > lambda_).any():
            break
        lambda_ = torch.maximum(lambda_, further)
    lambda_ = lambda_[:, None]
    length = torch.where(weight > 0, torch.minimum(lambda_ * v, room), 0)
    return (towards * length).view_as(points)


@checked
@dataclass(frozen=True)
class FAB(Attack):
    """Targeted FAB (Croce & Hein 2020, "Minimally distorted adversarial examples with a fast
    adaptive boundary attack", algorithm 1), as AutoAttack runs it ("FAB-T"): towards each of the
    likeliest wrong classes in turn.

        delta_i = P(x_i) - x_i,  delta_orig = P(x_orig) - x_orig
        alpha = min(|delta_i| / (|delta_i| + |delta_orig|), alpha_max)
        x_{i+1} = clip((1 - alpha) (x_i + eta delta_i) + alpha (x_orig + eta delta_orig))

    Symbols: x_orig the image, x_i the point after i steps, y its class, t the target, P the
    projection onto {z_t = z_y} as it looks from x_i, linearised, within the box, in the threat's
    norm; alpha draws back to the image, eta steps beyond the boundary, clip is to the box. If
    x_{i+1} is misclassified, as whatever class, the attack keeps it if it is the nearest so far,
    and goes on from (1 - beta) x_orig + beta x_{i+1}. Where z_t = z_y the linearised boundary is
    where x_i is already, and is taken to be a little farther. The paper's final search along the
    last line is left out, as in AutoAttack.

    Further restarts begin at a random point within epsilon / 2. Without ``nearest``, an image is
    spared further steps, restarts and targets as soon as it is misclassified within epsilon.
    (AutoAttack goes on with the steps, which changes no verdict.)

    The attack returns the nearest adversarial point, *projected into the threat* if it is farther
    than epsilon; the projection is adversarial only by luck. The image itself comes back where the
    search fails, or where it is misclassified already. The result lies close to the boundary, so
    attack in float32.

    On a random model (it says so, or two passes over the clean image differ) no image leaves, and a
    majority of fresh draws judges x_{i+1}. There are as many draws as the estimator takes
    gradients, or averages over: one with `Backprop` or `FiniteDifference` alone, where luck
    decides, so take `Average` around them. The results of all runs are judged once more, on the
    same draws. The result that is wrong most often comes back, of equals the first.
    With ``nearest`` its ray is then searched for a point that holds with `VOTES` fresh draws
    (`robusttrain.attacks.ray`). AutoAttack has no FAB for random models: a nearest point is a
    brittle one.

    Args:
        steps: N_iter, for each target.
        restarts: runs for each target.
        targets: how many of the likeliest wrong classes to try, at most all.
        alpha_max: the most that draws back to the image.
        eta: overshoot; a step with 1 ends on the boundary.
        beta: where between the image (0) and an adversarial point (1) the search goes on.
        nearest: whether all steps and targets are spent to find the nearest point. For minimal
            distances, set it and a wide threat.
        threat: whose norm is minimised, Linf or L2, and whose ball the result is projected into.
        gradient: how z_t - z_y and its gradient are estimated.
    """

    steps: Count = 100
    restarts: Count = 1
    targets: Count = 9
    alpha_max: Share = 0.1
    eta: float = 1.05
    beta: Share = 0.9
    nearest: bool = False
    threat: Threat = field(default_factory=Linf)
    gradient: GradientEstimator = field(default_factory=Backprop)

    by_norm = True

    def __post_init__(self) -> None:
        at_least("eta", self.eta, 1)
        need_norm(self, self.threat, ("linf", "l2"))

    @property
    def judging(self) -> int:
        """Draws of a random model that judge a point."""
        averaged = 1
        each: GradientEstimator | None = self.gradient
        while each is not None:  # means of differences take no gradient
            averaged, each = averaged * max(1, each.averaged), each.made_of
        return max(averaged, self.gradient.evaluations)

    @property
    def settling(self) -> int:
        """Draws of a random model that judge a point of the last search."""
        return max(VOTES, self.judging)

    @property
    def seeks_nearest(self) -> bool:
        return self.nearest

    def scaled(self, effort: float) -> FAB:
        return replace(self, steps=times(self.steps, effort))

    def cost(self) -> Cost:
        """An upper bound: broken images leave, a deterministic model judges a point once, and needs
        no last search for the ``nearest``.
        """
        runs = self.restarts * self.targets
        search = TRIES * self.settling if self.nearest else 0
        return Cost(
            gradients=runs * self.steps * self.gradient.evaluations,
            queries=2
            + self.judging
            + search
            + runs * (self.steps * (self.gradient.queries + self.judging) + self.judging),
        )

    def run(self, source: nn.Module, images: Tensor, labels: Tensor, rng: Rng) -> Tensor:
        logits, random = Queried.of(source).asked_twice(images, rng.fold("ask"))
        result, alike = images.clone(), all_or_none(random)
        ranked = rank_targets(logits, labels, rng.fold("aim"), "second", self.targets).unbind(dim=1)
        share = self.wrong(source, images, labels, random, rng.fold("clean"), alike)
        left = (share < 1).nonzero().squeeze(1)
        distance = images.new_full((len(images),), torch.inf)
        most = torch.full_like(distance, -1)
        for number, (target, restart) in enumerate(product(ranked, range(self.restarts))):
            if not len(left):
                break
            x, y, streams = images[left], labels[left], rng[left].fold(number)
            adversarial, reached = self.approach(
                source, x, y, target[left], random[left], restart > 0, streams, alike
            )
            adversarial = into_ball(self.threat, adversarial, x)
            judges = rng[left].fold("choose")
            share = self.wrong(source, adversarial, y, random[left], judges, alike)
            better = torch.where(random[left], share > most[left], reached < distance[left])
            result[left] = torch.where(per_image(better), adversarial, result[left])
            distance[left] = torch.minimum(reached, distance[left])
            most[left] = torch.maximum(share, most[left])
            if not self.nearest:
                left = left[random[left] | (distance[left] > self.threat.epsilon)]
        if not self.nearest or alike is False:
            return result
        majority = Majority(source, Margin(), labels, 0.0, self.settling)
        return held(majority, self.threat, images, result, random, rng.fold("settle"))

    def wrong(
        self,
        source: nn.Module,
        points: Tensor,
        labels: Tensor,
        random: Tensor,
        rng: Rng,
        alike: bool | None,
    ) -> Tensor:
        """(B,) in [0, 1]: the share of draws in which ``points`` are misclassified; ``alike`` as
        for `by_draws`.
        """
        share = points.new_zeros(len(points))
        for which, votes in by_draws(random, self.judging, alike):
            share[which] = share_wrong(source, points[which], labels[which], rng[which], votes)
        return share

    def approach(
        self,
        source: nn.Module,
        images: Tensor,
        labels: Tensor,
        targets: Tensor,
        random: Tensor,
        random_start: bool,
        rng: Rng,
        alike: bool | None,
    ) -> tuple[Tensor, Tensor]:
        """The loop, towards one target (B,) for each image.

        Returns:
            The nearest adversarial points (B, C, H, W), or the image where there is none, and their
            distances (B,), infinite where there is none.
        """
        goal = torch.stack([labels, targets], dim=1)
        start = self.threat.at(self.threat.epsilon / 2)
        x = start.random_start(images, rng.fold("start")) if random_start else images.clone()
        best, nearest = images.clone(), images.new_full((len(images),), torch.inf)
        here = torch.arange(len(images), device=images.device)  # the images that are still attacked
        for i in range(self.steps):
            x_orig, x_i, streams = images[here], x[here], rng[here].fold(i)
            f, w = self.gradient(Loss(source, _Difference(), goal[here]), x_i, streams)
            x_next = self.step(x_i, x_orig, f, w.to(x.dtype))

            judges = streams.fold("judge")
            wrong = self.wrong(source, x_next, labels[here], random[here], judges, alike) > 0.5
            distance = self.threat.distance(x_next, x_orig)
            closer = wrong & (distance < nearest[here])
            best[here] = torch.where(per_image(closer), x_next, best[here])
            nearest[here] = torch.where(closer, distance, nearest[here])
            x[here] = torch.where(per_image(wrong), torch.lerp(x_orig, x_next, self.beta), x_next)
            if not self.nearest and alike is not True:  # on a random model no image leaves
                here = here[random[here] | (nearest[here] > self.threat.epsilon)]
                if not len(here):
                    break
        return best, nearest

    def step(self, points: Tensor, images: Tensor, value: Tensor, gradient: Tensor) -> Tensor:
        """x_{i+1} from x_i = ``points``, where z_t - z_y is ``value`` (B,); points without a
        gradient stay.
        """
        usable = (
            value.isfinite()
            & gradient.flatten(1).isfinite().all(dim=1)
            & gradient.flatten(1).any(dim=1)
        )
        w, power = of_order_one(torch.where(per_image(usable), gradient, 0))
        back = (w * (images - points)).flatten(1).sum(dim=1)
        # Rounded logits (bfloat16, whole numbers) are equal in a whole region: a plane through the
        # point would hold it there for good.
        rise = (BEYOND_TIE * back.abs()).maximum(LEAST_STEP * w.flatten(1).norm(dim=1))
        f = torch.where(usable, torch.where(value == 0, -rise, value / power), 0)
        # The same plane seen from the image: the linear function's value there.
        f_orig = f + back
        delta = to_hyperplane(points, f, w, self.threat.norm)
        delta_orig = to_hyperplane(images, f_orig, w, self.threat.norm)
        length, length_orig = (
            self.threat.distance(each, torch.zeros_like(each)).clamp_min(LEAST)
            for each in (delta, delta_orig)
        )
        alpha = per_image((length / (length + length_orig)).clamp_max(self.alpha_max))
        moved = (1 - alpha) * (points + self.eta * delta) + alpha * (images + self.eta * delta_orig)
        return torch.where(per_image(usable), moved.clamp(0, 1), points)
