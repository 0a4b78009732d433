"""FMN: gradient steps within a ball whose radius closes in on the boundary."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import torch
from torch import Tensor, nn

from robusttrain.attacks.algorithms.nearest import Nearest, annealed, cost_of
from robusttrain.attacks.base import Attack, Cost, times
from robusttrain.attacks.parts.gradients import Backprop, GradientEstimator
from robusttrain.attacks.parts.loss import Loss
from robusttrain.attacks.parts.objectives import Margin
from robusttrain.attacks.parts.threats import Linf, Threat, per_image
from robusttrain.attacks.parts.updates import STEEPEST, Normalized
from robusttrain.core.checked import Count, Positive, Share, checked
from robusttrain.core.errors import OptionError
from robusttrain.core.rng import Rng

#: The last gamma (as released).
LAST_GAMMA = 0.001
#: How far beyond the linearised boundary the first balls reach. (The paper's end on it: where the
#: model is close to linear, no iterate would ever lie beyond.)
BEYOND = 1.01
#: The same for `FMN.newton`, which comes back from beyond in one step; and how far a radius may
#: change at once, where the model is taken for linear.
NEWTONS_BEYOND, TRUST = 1.05, 0.5
#: q of the dual norm: a linear function with gradient w falls by epsilon |w|_q at most in the ball.
DUAL = {"linf": 1, "l2": 2}
_TINY = torch.finfo(torch.float32).tiny


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
    before the boundary for good. The paper's optional start at an adversarial image is left out.

    The attack returns x + delta*, *projected into the threat* if it is farther than the threat's
    epsilon; the projection is adversarial only by luck. For minimal distances take a wide threat.
    The image itself comes back where it is misclassified already, or where no iterate is. Attack in
    float32: the result lies close to the boundary.

    With ``newton``, which is ours, the radius goes where the linearised boundary is in every step,
    not only before the first success, and steps are those of steepest ascent in the norm itself,
    u = sign(g) or g / |g|_2, as long as the radius says:

        epsilon_{k+1} = |delta_k|_p + 1.05 |L| / |g|_q        if x_k is not adversarial
                      = |delta_k|_p - |L| / |g|_q             if x_k is adversarial
        delta_{k+1} = clip(P(delta_k - alpha_k epsilon_{k+1} u))

    The radius changes by at most half at once, and is always less than (1 - gamma_k) |delta*|_p,
    but for a random model, where delta* may have been luck.
    With few steps the paper's is still on its way, 5 % a step, from a first ball that reached too
    far; and Euclidean steps of length 1 are short within a ball of Linf.

    On a random model (two passes over the clean image tell, of which the second is the first
    gradient's) each draw says where to go on. Then the ray from the image through a mean of the
    last iterates is searched for the least radius at which most of ``votes`` fresh draws are wrong
    (`ray.Majority`, which asks for more than half).
    An estimator other than `Backprop` takes a query for each iterate.

    Args:
        steps: K, the iterates that are asked about, x itself first.
        step_size: alpha_0, Euclidean in either norm, in units of pixel values; with ``newton`` a
            share of the radius.
        gamma: gamma_0, by which share the radius changes in the first step.
        newton: whether radius and steps are ours (above).
        votes: draws of a random model's randomness that judge a point of that ray.
        threat: whose norm is minimised, Linf or L2, and whose ball the result is projected into.
        gradient: how L and its gradient are estimated.
    """

    steps: Count = 100
    step_size: Positive = 1.0
    gamma: Share = 0.05
    newton: bool = False
    votes: Count = 10
    threat: Threat = field(default_factory=Linf)
    gradient: GradientEstimator = field(default_factory=Backprop)

    def __post_init__(self) -> None:
        if self.threat.norm not in DUAL:
            raise OptionError("threat", self.threat, f"FMN knows the norms {', '.join(DUAL)}")

    @property
    def seeks_nearest(self) -> bool:
        return True

    def scaled(self, effort: float) -> FMN:
        return replace(self, steps=times(self.steps, effort))

    def cost(self) -> Cost:
        return cost_of(self.steps, self.gradient)

    def run(self, source: nn.Module, images: Tensor, labels: Tensor, rng: Rng) -> Tensor:
        parts = (self.threat, self.gradient, self.votes)
        return Nearest.found(self.minimise, source, images, labels, *parts, rng)

    def minimise(self, nearest: Nearest, rng: Rng) -> None:
        """The loop: ``nearest`` notes its iterates; ``rng`` has the images' streams (B,)."""
        source, images, labels = nearest.source, nearest.images, nearest.labels
        loss_fn = Loss(source, Margin(), labels)  # -L, which rises
        epsilon = torch.full_like(nearest.distance, torch.inf)
        farthest, x = nearest.farthest(), images
        rule = STEEPEST[self.threat.norm] if self.newton else Normalized()
        for k in range(self.steps):
            streams = rng.fold(k)
            margin, gradient = self.gradient(loss_fn, x, streams)
            adversarial = nearest.note(x, margin, streams.fold("judge"))
            if k + 1 == self.steps:
                break
            gradient = self.free(x, gradient)
            gamma = annealed(self.gamma, LAST_GAMMA, k, self.steps)
            slope = gradient.flatten(1).norm(p=DUAL[self.threat.norm], dim=1).clamp_min(_TINY)
            size, off = self.threat.distance(x, images), margin.abs() / slope
            # One lucky draw must not keep all further iterates nearer.
            best = nearest.distance.masked_fill(nearest.random & self.newton, torch.inf)
            epsilon = self.radius(epsilon, size, off, adversarial, best, gamma)
            # What is no number leaves the whole box.
            epsilon = torch.where(epsilon < farthest, epsilon, farthest)
            step, _ = rule.step(gradient, None)
            alpha = annealed(self.step_size, self.step_size / 100, k, self.steps)
            reach = per_image(epsilon) if self.newton else 1.0
            delta = (x - images).add_(alpha * reach * step)
            x = self.into(delta, epsilon).add_(images).clamp_(0, 1)

    def radius(
        self,
        epsilon: Tensor,
        size: Tensor,
        off: Tensor,
        adversarial: Tensor,
        best: Tensor,
        gamma: float,
    ) -> Tensor:
        """(B,): the next epsilon.

        Args:
            epsilon: (B,), the last.
            size: (B,), |delta_k|.
            off: (B,), |L| / |g|, how far the linearised boundary is from the iterate.
            adversarial: (B,) bool, whether the iterate is.
            best: (B,), |delta*|, infinite where there is none.
            gamma: gamma_k.
        """
        if not self.newton:
            less, more = ((1 - gamma) * epsilon).minimum(best), (1 + gamma) * epsilon
            return torch.where(
                adversarial, less, torch.where(best.isfinite(), more, size + BEYOND * off)
            )
        less = (size - off).maximum((1 - TRUST) * size)
        more = (size + NEWTONS_BEYOND * off).minimum((1 + TRUST) * epsilon)
        return torch.where(adversarial, less, more).minimum((1 - gamma) * best)

    @staticmethod
    def free(x: Tensor, gradient: Tensor) -> Tensor:
        """The gradient (B, C, H, W), zero where a step along it would leave the box at once."""
        stuck = ((x <= 0) & (gradient < 0)) | ((x >= 1) & (gradient > 0))
        return gradient.masked_fill(stuck, 0)

    def into(self, delta: Tensor, epsilon: Tensor) -> Tensor:
        """P: changes (B, C, H, W) projected into balls of radii epsilon (B,)."""
        radius = per_image(epsilon)
        if self.threat.norm == "linf":
            return delta.minimum(radius).maximum(-radius)
        length = per_image(delta.flatten(1).norm(dim=1)).clamp_min(_TINY)
        return delta * (radius / length).clamp_max(1)
