"""FMN: gradient steps within a ball whose radius closes in on the boundary."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import torch
from torch import Tensor, nn

from robusttrain.attacks.algorithms.nearest import (
    DUAL,
    Nearest,
    annealed,
    cost_of,
    cost_on,
    into,
    lengthened,
    slope_within,
)
from robusttrain.attacks.base import Attack, Cost, times
from robusttrain.attacks.parts.gradients import Backprop, GradientEstimator
from robusttrain.attacks.parts.loss import Loss
from robusttrain.attacks.parts.objectives import Margin
from robusttrain.attacks.parts.threats import Linf, Threat, need_norm
from robusttrain.attacks.parts.updates import Normalized
from robusttrain.core.checked import Count, Positive, Share, checked
from robusttrain.core.rng import Rng

#: The last gamma (as released).
LAST_GAMMA = 0.001
#: How far beyond the linearised boundary the first balls reach. (The paper's end on it: where the
#: model is close to linear, no iterate would ever lie beyond.)
BEYOND = 1.01


@checked
@dataclass(frozen=True)
class FMN(Attack):
    """The attack of Pintor et al. 2021, "Fast minimum-norm adversarial attacks through adaptive
    norm constraints", algorithm 1, in the norms Linf (p) and L2.

        L = z_y - max_{i != y} z_i,  g = grad L(x_k), without what leads out of the box
        epsilon_{k+1} = |delta_k|_p + |L| / |g|_q             as long as no iterate was adversarial
                      = (1 + gamma_k) epsilon_k                       if x_k is not adversarial
                      = min((1 - gamma_k) epsilon_k, |delta*|_p)      if x_k is adversarial
        delta_{k+1} = clip(P(delta_k - alpha_k g / |g|_2))

    Symbols: x the image, x_k = x + delta_k the iterate, x_0 = x, z logits, y the true class,
    epsilon_k the radius of the ball that P projects into, q the dual of p, so that |L| / |g|_q is
    how far the boundary of the linearised model is (we go 1 % of it farther), delta* the nearest
    adversarial change so far, clip to the box. alpha_k and gamma_k follow half a cosine down to
    alpha_0 / 100 and 0.001, and epsilon is no greater than the distance of the farthest corner of
    the box, as released. Pixels at the edge of the box that g would push out of it are left out of
    g: in the paper they count, and on images with black or white areas the ball may then settle
    before the boundary for good. It would do so, too, where two rounded logits are equal (L = 0),
    or where pixels come to that edge and are drawn back from it in turn: where L = 0, or the ball
    would be no larger than the last, which failed, it reaches at least gamma_0 farther than x_k
    (`lengthened`). The paper's optional start at an adversarial image is left out.

    The attack returns x + delta*, *projected into the threat* if it is farther than the threat's
    epsilon; the projection is adversarial only by luck. For minimal distances take a wide threat.
    The image itself comes back where it is misclassified already, or where no iterate is. Attack in
    float32: the result lies close to the boundary.

    On a random model (two passes over the clean image tell, of which the second is the first
    gradient's) each draw says where to go on. Then the ray from the image through a mean of the
    last iterates is searched for the least radius at which most of ``votes`` fresh draws are wrong
    (`ray.Majority`, which asks for more than half).
    An estimator other than `Backprop` takes a query for each iterate.

    Args:
        steps: K, the iterates that are asked about, x itself first.
        step_size: alpha_0, Euclidean in either norm, in units of pixel values.
        gamma: gamma_0, by which share the radius changes in the first step.
        votes: draws of a random model's randomness that judge a point of that ray.
        threat: whose norm is minimised, Linf or L2, and whose ball the result is projected into.
        gradient: how L and its gradient are estimated.
    """

    steps: Count = 100
    step_size: Positive = 1.0
    gamma: Share = 0.05
    votes: Count = 10
    threat: Threat = field(default_factory=Linf)
    gradient: GradientEstimator = field(default_factory=Backprop)

    by_norm = True

    def __post_init__(self) -> None:
        need_norm(self, self.threat, DUAL)

    @property
    def seeks_nearest(self) -> bool:
        return True

    def scaled(self, effort: float) -> FMN:
        return replace(self, steps=times(self.steps, effort))

    def cost(self) -> Cost:
        return cost_of(self.steps, self.gradient)

    def cost_on(self, source: nn.Module) -> Cost:
        return cost_on(self.steps, self.gradient, self.votes, source)

    def run(self, source: nn.Module, images: Tensor, labels: Tensor, rng: Rng) -> Tensor:
        parts = (self.threat, self.gradient, self.votes)
        return Nearest.found(self.minimise, source, images, labels, *parts, rng)

    def minimise(self, nearest: Nearest, rng: Rng) -> None:
        """The loop: ``nearest`` notes its iterates; ``rng`` has the images' streams (B,)."""
        source, images, labels = nearest.source, nearest.images, nearest.labels
        loss_fn = Loss(source, Margin(), labels)  # -L, which rises
        epsilon = torch.full_like(nearest.distance, torch.inf)
        farthest, x = nearest.farthest(), images
        for k in range(self.steps):
            streams = rng.fold(k)
            margin, gradient = self.gradient(loss_fn, x, streams)
            adversarial = nearest.note(x, margin, streams.fold("judge"))
            if k + 1 == self.steps:
                break
            gradient, slope = slope_within(x, gradient, self.threat.norm)
            gamma = annealed(self.gamma, LAST_GAMMA, k, self.steps)
            size, off = self.threat.distance(x, images), margin.abs() / slope
            less, more = ((1 - gamma) * epsilon).minimum(nearest.distance), (1 + gamma) * epsilon
            reached = lengthened(size + BEYOND * off, size, epsilon, margin, self.gamma)
            first = torch.where(nearest.distance.isfinite(), more, reached)
            epsilon = torch.where(adversarial, less, first)
            # What is no number leaves the whole box.
            epsilon = torch.where(epsilon < farthest, epsilon, farthest)
            g, _ = Normalized().step(gradient, None)
            alpha = annealed(self.step_size, self.step_size / 100, k, self.steps)
            delta = (x - images).add_(g, alpha=alpha)
            x = into(delta, epsilon, self.threat.norm).add_(images).clamp_(0, 1)
