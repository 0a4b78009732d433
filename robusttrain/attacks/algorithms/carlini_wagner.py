"""Carlini & Wagner: the nearest adversarial image by gradient descent, in the Euclidean norm."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import torch
from torch import Tensor, nn

from robusttrain.attacks.algorithms.nearest import tells
from robusttrain.attacks.asking import Queried
from robusttrain.attacks.base import Attack, Cost, times
from robusttrain.attacks.parts.differentiation import order_of
from robusttrain.attacks.parts.gradients import Backprop, GradientEstimator
from robusttrain.attacks.parts.loss import Loss
from robusttrain.attacks.parts.objectives import Margin, Objective, TargetedMargin
from robusttrain.attacks.parts.threats import L2, Threat, into_ball, per_image
from robusttrain.attacks.parts.updates import Adam
from robusttrain.attacks.queries import all_or_none, share_above
from robusttrain.attacks.ray import TRIES, Majority, held
from robusttrain.core.checked import Count, NonNegative, Positive, checked
from robusttrain.core.errors import OptionError
from robusttrain.core.rng import Rng

#: tanh never reaches 0 and 1; pixels there start this little inside (as released).
INSIDE = 0.999999
#: c is never greater (as released).
LARGEST_C = 1e10
#: Logits whose margin and its gradient are both below are so faint that no c would reach them.
FAINT = 2.0**-14
#: Margins whose gradient is above are so steep that the least c tried would still be far too large.
STEEP = 2.0**10
#: The least number of steps before Adam is judged. Adam overshoots the boundary, and comes back in
#: fewer steps.
PATIENCE = 30
_TINY = torch.finfo(torch.float32).tiny


def scale_of(value: Tensor, gradient: Tensor) -> Tensor:
    """(B,): the power of two of the logits, as a margin (B,) and its gradient (B, C, H, W) show it;
    1 where these are not both faint, nor the gradient steep, or where there is none.
    """
    slope = order_of(gradient)
    order = torch.maximum(slope, order_of(value.view(-1, 1, 1, 1)))
    faint = torch.where((slope > 0) & (order < FAINT), order, 1)
    return torch.where(slope > STEEP, slope, faint)


@dataclass(frozen=True)
class _Hinge(Objective):
    """-f: min(margin - kappa, 0), but a hair above 0 where the margin exceeds kappa, so that a tie
    does not count.
    """

    margin: Objective
    confidence: float

    def __call__(self, logits: Tensor, goal: Tensor) -> Tensor:
        return (self.margin(logits, goal) - self.confidence).clamp_max(_TINY)


@checked
@dataclass(frozen=True)
class CarliniWagner(Attack):
    """The attack of Carlini & Wagner 2017, "Towards evaluating the robustness of neural networks",
    sections V and VI.A.

        minimise |x' - x|_2^2 + c f(x'),   x' = (tanh w + 1) / 2,
        f = max(z_y - max_{i != y} z_i + kappa, 0)

    Symbols: x the image, x' the adversarial one, z logits, y the true class, kappa the confidence
    asked for, w what Adam moves, from w = atanh(2 x - 1) on, so that x' never leaves the box.
    Towards a target t, f = max(max_{i != t} z_i - z_t + kappa, 0). An iterate is adversarial if its
    margin is greater than kappa; f is then 0. The attack keeps the nearest adversarial iterate.

    Each image has a c of its own. After a descent without an adversarial iterate the next c is
    10 c, else the middle between the largest c that failed and the smallest that did not. All
    images advance together. With ``abort_early`` an image sits out the rest of a descent once its
    lowest loss has fallen by less than 0.01 % within a tenth of the steps, or within 30 steps if
    that is more. (The released code judges the loss of the whole batch. Here no image's fate
    depends on another's. A single image's loss is less steady, too.)

    c is made for logits as they usually are. Where the margin at the image and its gradient are
    both below `FAINT`, f is divided by the power of two of the larger one; where the gradient is
    above `STEEP`, by its own.

    The attack returns the nearest adversarial image, *projected into the threat* if it is farther
    than epsilon; the projection is adversarial only by luck. For minimal distances take a wide
    threat. The image itself comes back where it is adversarial already, or where the search fails.
    With kappa = 0 the result touches the boundary, where another rounding (an 8-bit file, a source
    in bfloat16) decides; ``confidence`` buys clearance.

    On a random model (two passes over the clean image tell) the majority of ``votes`` fresh draws
    judges an iterate, and an image is left alone only if all draws get it wrong. The nearest of
    many iterates was then lucky, too: at the end its ray is searched for a point that holds with
    fresh draws (`robusttrain.attacks.ray`). An estimator other than `Backprop`
    does not give the loss of the iterate itself, so the iterate takes a query of its own.
    ``abort_early`` does nothing in either case. An iterate takes a query, too, where the source is
    an ensemble that fuses losses: the mean of its members' margins is not that of its answer.

    Args:
        steps: Adam's steps in each descent; 10,000 in the paper.
        learning_rate: Adam's, for w.
        confidence: kappa, in logits.
        search_steps: values of c that are tried; 9 in the released code.
        initial_c: the first of them.
        abort_early: whether images whose loss no longer falls sit out the rest of a descent.
        nearest: whether the search goes on for the nearest adversarial image. Without it an
            evaluation of a deterministic model lets an image go as soon as an iterate within the
            threat is misclassified: for verdicts within a bounded threat.
        votes: draws of a random model's randomness that judge an iterate.
        threat: L2, whose ball the result is projected into.
        objective: the margin: `Margin`, or `TargetedMargin`.
        gradient: how the gradient of f is estimated; `Diverse` makes D-C&W (Xie et al. 2019 [P2],
            section 4.2).
    """

    steps: Count = 1000
    learning_rate: Positive = 0.01
    confidence: NonNegative = 0.0
    search_steps: Count = 9
    initial_c: Positive = 1e-3
    abort_early: bool = True
    nearest: bool = True
    votes: Count = 10
    threat: Threat = field(default_factory=L2)
    objective: Objective = field(default_factory=Margin)
    gradient: GradientEstimator = field(default_factory=Backprop)

    by_norm = True

    def __post_init__(self) -> None:
        if self.threat.norm != "l2":
            raise OptionError("threat", self.threat, "must be L2, the norm that is minimised")
        if not isinstance(self.objective, Margin | TargetedMargin):
            raise OptionError("objective", self.objective, "must be Margin or TargetedMargin")

    def with_objective(self, objective: Objective) -> CarliniWagner | None:
        """The same attack with the other margin; None for objectives that are no margins."""
        margin = isinstance(objective, Margin | TargetedMargin)
        return replace(self, objective=objective) if margin else None

    @property
    def seeks_nearest(self) -> bool:
        return self.nearest

    def scaled(self, effort: float) -> CarliniWagner:
        return replace(self, steps=times(self.steps, effort))

    def cost(self) -> Cost:
        """An upper bound on a deterministic source that does not fuse losses."""
        steps = self.steps * self.search_steps
        voted = 0 if self.gradient.exact else self.votes
        return Cost(
            gradients=steps * self.gradient.evaluations,
            queries=2
            + int(self.objective.asks)
            + self.votes
            + steps * (self.gradient.queries + voted),
        )

    def cost_on(self, source: nn.Module) -> Cost:
        """An upper bound: a random model is asked ``votes`` times about each iterate, and in the
        last search; of a source that fuses losses no loss tells whether an iterate is adversarial.
        """
        cost, queried = self.cost(), Queried.of(source)
        steps = self.steps * self.search_steps
        judged = self.votes if queried.random else int(not tells(self.gradient, queried))
        queries = cost.queries + (steps * judged if self.gradient.exact else 0)
        return cost._replace(queries=queries + (TRIES * self.votes if queried.random else 0))

    def run(self, source: nn.Module, images: Tensor, labels: Tensor, rng: Rng) -> Tensor:
        _, random = Queried.of(source).asked_twice(images, rng.fold("ask"))
        goal = self.objective.aim(source, images, labels, rng.fold("aim"))
        alike = all_or_none(random)
        share = self.share_fooled(source, images, goal, random, rng.fold("clean"), alike)
        result, left = images.clone(), (share < 1).nonzero().squeeze(1)
        if len(left):
            x, streams = images[left], rng[left]
            adversarial = self.minimise(source, x, goal[left], random[left], streams, alike)
            if alike is False:
                result[left] = into_ball(self.threat, adversarial, x)
            else:
                majority = Majority(source, self.objective, goal[left], self.confidence, self.votes)
                settled = (random[left], streams.fold("settle"))
                result[left] = held(majority, self.threat, x, adversarial, *settled)
        return result

    def share_fooled(
        self,
        source: nn.Module,
        points: Tensor,
        goal: Tensor,
        random: Tensor,
        rng: Rng,
        alike: bool | None,
    ) -> Tensor:
        """(B,) in [0, 1]: the share of draws in which the margin at ``points`` exceeds the
        confidence; ``alike`` as for `by_draws`.
        """
        asked = (points, self.objective, goal, self.confidence, random)
        return share_above(source, *asked, rng, self.votes, alike)

    def minimise(
        self,
        source: nn.Module,
        images: Tensor,
        goal: Tensor,
        random: Tensor,
        rng: Rng,
        alike: bool | None,
    ) -> Tensor:
        """Search for c: the nearest adversarial images (B, C, H, W), or the image where there is
        none.
        """
        best, nearest = images.clone(), images.new_full((len(images),), torch.inf)
        low, high = torch.zeros_like(nearest), nearest.clone()
        c = torch.full_like(nearest, self.initial_c)
        for search in range(self.search_steps):
            streams = rng.fold(search)
            adversarial, distance = self.descend(source, images, goal, c, random, streams, alike)
            closer, success = distance < nearest, distance.isfinite()
            best = torch.where(per_image(closer), adversarial, best)
            nearest = torch.where(closer, distance, nearest)
            low, high = torch.where(success, low, c), torch.where(success, c, high)
            c = torch.where(high.isinf(), 10 * c, (low + high) / 2).clamp_max(LARGEST_C)
        return best

    def descend(
        self,
        source: nn.Module,
        images: Tensor,
        goal: Tensor,
        c: Tensor,
        random: Tensor,
        rng: Rng,
        alike: bool | None,
    ) -> tuple[Tensor, Tensor]:
        """Take Adam's steps, with a c (B,) for each image.

        Returns:
            The nearest adversarial iterates (B, C, H, W), and their squared distances (B,),
            infinite where there is none.
        """
        best, nearest = images.clone(), torch.full_like(c, torch.inf)
        adam, hinge = Adam(), _Hinge(self.objective, self.confidence)
        w = torch.atanh((2 * images - 1) * INSIDE)
        # Adam itself does not divide here (power 1): the way from w to x' alone makes its gradients
        # faint where pixels are 0 or 1.
        state = adam.init(w)._replace(power=torch.ones_like(c))
        lowest, scale = torch.full_like(c, torch.inf), torch.ones_like(c)
        lowest_before, period = lowest, max(PATIENCE, -(-self.steps // 10))
        # Images for which the estimator's loss is not the iterate's, or would differ the next time.
        noisy = random if self.gradient.exact else torch.ones_like(random)
        everyone = not tells(self.gradient, source) or alike is True
        # The images that have not stopped early
        here, x, rng_here = torch.arange(len(images), device=images.device), images, rng
        for t in range(self.steps):
            streams = rng_here.fold(t)
            adversarial = (w.tanh() + 1) / 2
            minus_f, ascent = self.gradient(Loss(source, hinge, goal[here]), adversarial, streams)
            if not t:  # all descents begin at the image, and so with the same scale
                scale = scale_of(minus_f, ascent)
            # Before a hair is divided away. NaN names no class, which is wrong, but no target.
            fooled = minus_f > 0 if self.objective.target is not None else ~(minus_f <= 0)
            minus_f, ascent = minus_f / scale[here], ascent / per_image(scale[here])
            change = adversarial - x
            distance = change.square().flatten(1).sum(dim=1)

            if everyone:
                asked = (adversarial, goal[here], random[here], streams.fold("judge"))
                fooled = self.share_fooled(source, *asked, alike) > 0.5
            elif alike is None:
                some = noisy[here].nonzero().squeeze(1)
                which, judges = here[some], streams[some].fold("judge")
                asked = (adversarial[some], goal[which], random[which], judges)
                fooled = fooled.index_copy(0, some, self.share_fooled(source, *asked, True) > 0.5)
            closer = fooled & (distance < nearest[here])
            if not t:  # x itself, but for rounding: a draw that is wrong there is luck
                closer = closer & ~random
            best[here] = torch.where(per_image(closer), adversarial, best[here])
            nearest[here] = torch.where(closer, distance, nearest[here])

            gradient = (
                (2 * change - per_image(c[here]) * ascent) * 2 * adversarial * (1 - adversarial)
            )
            step, state = adam.step(gradient, state)
            w = w - self.learning_rate * step
            lowest = torch.minimum(lowest, distance - c[here] * minus_f)
            if self.abort_early and (t + 1) % period == 0:
                # A loss that is NaN goes nowhere either.
                going = ((lowest <= 0.9999 * lowest_before) | noisy[here]).nonzero().squeeze(1)
                here, w, state, lowest = here[going], w[going], state.keep(going), lowest[going]
                lowest_before, x, rng_here = lowest, images[here], rng[here]
                if not len(here):
                    break
        return best, nearest
