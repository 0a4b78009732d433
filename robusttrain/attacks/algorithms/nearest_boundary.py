"""The nearest adversarial image, by Newton's steps onto the boundary that heed several classes."""

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
from robusttrain.attacks.parts.objectives import Judged, SoftMargin
from robusttrain.attacks.parts.threats import Linf, Threat, need_norm, per_image
from robusttrain.attacks.parts.updates import STEEPEST
from robusttrain.core.checked import Count, Positive, Share, checked
from robusttrain.core.rng import Rng

#: How far beyond the linearised boundary an iterate is sent that is not there yet; and by which
#: share a radius may change at once, where the model is taken for linear.
BEYOND, TRUST = 1.05, 0.5
#: The last of gamma (as FMN's), the last share of the step size, the last temperature.
LAST_GAMMA, LAST_STEP, LAST_TEMPERATURE = 0.001, 0.01, 0.1
#: By how much the temperature may fall in a step, on average: few steps begin with a lower one.
COOLING = 0.04


@checked
@dataclass(frozen=True)
class NearestBoundary(Attack):
    """Ours, out of FMN (Pintor et al. 2021), in the norms Linf (p) and L2.

        L = max_{i != y} z_i - z_y
        J_k = T_k log sum_{i != y} exp(z_i / T_k) - z_y,  T_k = tau_k std_{i != y} z_i
        g = grad J_k(x_k), without what leads out of the box
        epsilon_{k+1} = |delta_k|_p + 1.05 |L| / |g|_q        if x_k is not adversarial (L <= 0)
                      = |delta_k|_p - |L| / |g|_q             if x_k is adversarial
        delta_{k+1} = clip(P(delta_k + alpha_k epsilon_{k+1} u)),  u = sign(g) or g / |g|_2

    Symbols: x the image, x_k = x + delta_k the iterate, x_0 = x, z logits, y the true class,
    epsilon_k the radius of the ball that P projects into, q the dual of p, delta* the nearest
    adversarial change so far, clip to the box.

    *The radius* goes where the linearised boundary is, in every step. (FMN's moves 5 % a step, from
    a first ball that reached too far.) It changes by at most half at once, stays below
    (1 - gamma_k) |delta*|_p, but for a random model, where delta* may have been luck, and is no
    greater than the distance of the farthest corner of the box. Where two rounded logits are equal
    (L = 0: the linearised boundary is where the iterate is already), or the ball would be no larger
    than the last, which failed, it reaches at least gamma_0 farther than x_k (`lengthened`).

    *The direction* is that of the margin with a soft maximum (`SoftMargin`), whose temperature
    tau_k falls to 0.1. L alone follows the one wrong class that is nearest just now, and where
    several are about as near it comes to rest between them, too far out; as the temperature falls,
    what is left is the class that leads out soonest. Pixels at the edge of the box that g would
    push out of it are left out of g.

    alpha_k, gamma_k and tau_k follow half a cosine down; tau by no more than 0.04 a step on
    average, so that fewer than eleven steps begin with less than the temperature given.

    The attack returns x + delta*, *projected into the threat* if it is farther than the threat's
    epsilon; the projection is adversarial only by luck. For minimal distances take a wide threat.
    The image itself comes back where it is misclassified already, or where no iterate is. Attack in
    float32: the result lies close to the boundary.

    On a random model (two passes over the clean image tell, of which the second is the first
    gradient's) each draw says where to go on. Then the ray from the image through a mean of the
    last iterates is searched for the least radius at which most of ``votes`` fresh draws are wrong
    (`ray.Majority`, which asks for more than half).
    An estimator other than `Backprop` takes a query for each iterate; one that looks at values
    alone climbs L.

    Args:
        steps: K, the iterates that are asked about, x itself first.
        step_size: alpha_0, a share of the radius; alpha falls to a hundredth of it.
        gamma: gamma_0, by which share an iterate has to be nearer than the nearest, at first.
        temperature: tau_0, in standard deviations of the wrong classes' logits.
        votes: draws of a random model's randomness that judge a point of that ray.
        threat: whose norm is minimised, Linf or L2, and whose ball the result is projected into.
        gradient: how L and the gradient of J are estimated.
    """

    steps: Count = 100
    step_size: Positive = 2.0
    gamma: Share = 0.05
    temperature: Positive = 0.5
    votes: Count = 10
    threat: Threat = field(default_factory=Linf)
    gradient: GradientEstimator = field(default_factory=Backprop)

    by_norm = True

    def __post_init__(self) -> None:
        need_norm(self, self.threat, DUAL)

    @property
    def seeks_nearest(self) -> bool:
        return True

    def scaled(self, effort: float) -> NearestBoundary:
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
        epsilon = torch.full_like(nearest.distance, torch.inf)
        farthest, x = nearest.farthest(), images
        rule, last = STEEPEST[self.threat.norm], min(LAST_TEMPERATURE, self.temperature)
        first = min(self.temperature, last + COOLING * (self.steps - 1))
        for k in range(self.steps):
            streams = rng.fold(k)
            tau = annealed(first, last, k, self.steps)
            loss_fn = Loss(source, Judged(SoftMargin(tau)), labels)
            margin, gradient = self.gradient(loss_fn, x, streams)
            adversarial = nearest.note(x, margin, streams.fold("judge"))
            if k + 1 == self.steps:
                break
            gradient, slope = slope_within(x, gradient, self.threat.norm)
            gamma = annealed(self.gamma, LAST_GAMMA, k, self.steps)
            # One lucky draw must not keep all further iterates nearer.
            best = nearest.distance.masked_fill(nearest.random, torch.inf)
            size, off = self.threat.distance(x, images), margin.abs() / slope
            less = (size - off).maximum((1 - TRUST) * size)
            more = lengthened(size + BEYOND * off, size, epsilon, margin, self.gamma)
            more = more.minimum((1 + TRUST) * epsilon)
            epsilon = torch.where(adversarial, less, more).minimum((1 - gamma) * best)
            # What is no number leaves the whole box.
            epsilon = torch.where(epsilon < farthest, epsilon, farthest)
            u, _ = rule.step(gradient, None)
            alpha = annealed(self.step_size, LAST_STEP * self.step_size, k, self.steps)
            delta = (x - images).add_(alpha * per_image(epsilon) * u)
            x = into(delta, epsilon, self.threat.norm).add_(images).clamp_(0, 1)
