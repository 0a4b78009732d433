"""FMN: gradient steps within a ball whose radius closes in on the boundary."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import torch
from torch import Tensor, nn

from robusttrain.attacks.algorithms.nearest import Nearest, annealed
from robusttrain.attacks.asking import Queried
from robusttrain.attacks.base import Attack, Cost, times
from robusttrain.attacks.parts.gradients import Backprop, GradientEstimator
from robusttrain.attacks.parts.loss import Loss
from robusttrain.attacks.parts.objectives import Margin
from robusttrain.attacks.parts.threats import Linf, Threat, into_ball, per_image
from robusttrain.attacks.parts.updates import Normalized
from robusttrain.core.checked import Count, Positive, Share, checked
from robusttrain.core.errors import OptionError
from robusttrain.core.rng import Rng

#: The last gamma (as released).
LAST_GAMMA = 0.001
#: How far beyond the linearised boundary the first balls reach. (The paper's end on it: where the
#: model is close to linear, no iterate would ever lie beyond.)
BEYOND = 1.01
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
    how far the boundary of the linearised model is (we go 1 % beyond it), delta* the nearest
    adversarial change so far, clip to the box. alpha_k and gamma_k follow half a cosine down to
    alpha_0 / 100 and 0.001, and epsilon is no greater than the distance of the farthest corner of
    the box, as released. Pixels at the edge of the box that g would push out of it are left out of
    g: in the paper they count, and on images with black or white areas the ball may then settle
    before the boundary for good. The paper's optional start at an adversarial image is left out.

    The attack returns x + delta*, *projected into the threat* if it is farther than the threat's
    epsilon; the projection is adversarial only by luck. For minimal distances take a wide threat.
    The image itself comes back where it is misclassified already, or where no iterate is. Attack in
    float32: the result lies close to the boundary.

    On a random model (two passes over the clean image tell) the majority of ``votes`` fresh draws
    judges an iterate. The nearest of many was then lucky, too. An estimator other than `Backprop`
    takes such a query for each iterate.

    Args:
        steps: K, the iterates that are asked about, x itself first.
        step_size: alpha_0, Euclidean in either norm, in units of pixel values.
        gamma: gamma_0, by which share the radius changes in the first step.
        votes: draws of a random model's randomness that judge an iterate.
        threat: whose norm is minimised, Linf or L2, and whose ball the result is projected into.
        gradient: how L and its gradient are estimated.
    """

    steps: Count = 100
    step_size: Positive = 1.0
    gamma: Share = 0.05
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
        """An upper bound; but `Backprop` on a random model takes ``votes`` more queries a step."""
        voted = 0 if isinstance(self.gradient, Backprop) else self.votes
        return Cost(
            gradients=self.steps * self.gradient.evaluations,
            queries=2 + self.steps * (self.gradient.queries + voted),
        )

    def run(self, source: nn.Module, images: Tensor, labels: Tensor, rng: Rng) -> Tensor:
        logits, random = Queried.of(source).asked_twice(images, rng.fold("ask"))
        images = images.to(torch.promote_types(images.dtype, torch.float32))
        result = images.clone()
        left = ((Margin()(logits, labels) <= 0) | random).nonzero().squeeze(1)
        if len(left):
            x = images[left]
            found = self.minimise(source, x, labels[left], random[left], rng[left])
            result[left] = into_ball(self.threat, found, x)
        return result

    def minimise(
        self, source: nn.Module, images: Tensor, labels: Tensor, random: Tensor, rng: Rng
    ) -> Tensor:
        """The loop: the nearest adversarial iterates (B, C, H, W), or the image where there is
        none.
        """
        nearest = Nearest(source, images, labels, random, self.threat, self.gradient, self.votes)
        loss_fn = Loss(source, Margin(), labels)  # -L, which rises
        epsilon = torch.full_like(nearest.distance, torch.inf)
        farthest, x = nearest.farthest(), images
        for k in range(self.steps):
            streams = rng.fold(k)
            margin, gradient = self.gradient(loss_fn, x, streams)
            adversarial = nearest.note(x, margin, streams.fold("judge"))
            if k + 1 == self.steps:
                break
            gradient = self.free(x, gradient)
            gamma = annealed(self.gamma, LAST_GAMMA, k, self.steps)
            slope = gradient.flatten(1).norm(p=DUAL[self.threat.norm], dim=1).clamp_min(_TINY)
            ahead = BEYOND * (self.threat.distance(x, images) + margin.abs() / slope)
            epsilon = torch.where(
                adversarial,
                ((1 - gamma) * epsilon).minimum(nearest.distance),
                torch.where(nearest.distance.isfinite(), (1 + gamma) * epsilon, ahead),
            )
            # What is no number leaves the whole box.
            epsilon = torch.where(epsilon < farthest, epsilon, farthest)
            step, _ = Normalized().step(gradient, None)
            alpha = annealed(self.step_size, self.step_size / 100, k, self.steps)
            delta = (x - images).add_(step, alpha=alpha)
            x = self.into(delta, epsilon).add_(images).clamp_(0, 1)
        return nearest.points

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
