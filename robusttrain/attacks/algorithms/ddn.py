"""DDN: the gradient chooses the direction, success or failure the norm."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import torch
from torch import Tensor, nn

from robusttrain.attacks.algorithms.nearest import Nearest, annealed, cost_of, cost_on, tells
from robusttrain.attacks.base import Attack, Cost, times
from robusttrain.attacks.parts.gradients import Backprop, GradientEstimator
from robusttrain.attacks.parts.loss import Loss
from robusttrain.attacks.parts.objectives import CrossEntropy, Judged, LogOdds, Objective
from robusttrain.attacks.parts.threats import L2, Threat, per_image
from robusttrain.attacks.parts.updates import Normalized
from robusttrain.core.checked import Count, Positive, Share, checked
from robusttrain.core.errors import OptionError
from robusttrain.core.rng import Rng

#: The step size at the end (paper, section 5; 1 at first).
LAST_STEP = 0.01
#: A change that is shorter has no direction.
LEAST_LENGTH = 1e-12


@checked
@dataclass(frozen=True)
class DDN(Attack):
    """The attack of Rony et al. 2019, "Decoupling direction and norm for efficient gradient-based
    L2 adversarial attacks and defenses", algorithm 1.

        g = alpha_k grad J(x_k) / |grad J(x_k)|_2
        epsilon_{k+1} = (1 - gamma) epsilon_k if x_k is adversarial, else (1 + gamma) epsilon_k
        delta_{k+1} = epsilon_{k+1} (delta_k + g) / |delta_k + g|_2
        x_{k+1} = clip(x + delta_{k+1})

    Symbols: x the image, x_k the iterate, x_0 = x, delta_k = x_k - x, J the loss, epsilon_k the
    norm of the iterate, alpha_k the step size, half a cosine from 1 to 0.01, clip is to the box. As
    in the released code, delta_{k+1} is what is left after clipping, and epsilon is no greater than
    the distance of the farthest corner of the box. (In the text, delta adds up the steps alone.)
    The images are not rounded to 8 bits. Where J is cross entropy, the direction is computed from
    the log-odds (`LogOdds`): the same direction, also where the softmax is saturated.

    The attack returns the nearest adversarial iterate, *projected into the threat* if it is farther
    than epsilon; the projection is adversarial only by luck. For minimal distances take a wide
    threat. The image itself comes back where it is misclassified already, or where no iterate is.
    Attack in float32: the result lies close to the boundary.

    On a random model (two passes over the clean image tell, of which the second is the first
    gradient's) each draw says where to go on. Then the ray from the image through a mean of the
    last iterates is searched for the least radius at which most of ``votes`` fresh draws are wrong
    (`ray.Majority`, which asks for more than half).
    An estimator other than `Backprop` takes a query for each iterate.

    Args:
        steps: K, the iterates that are asked about, x itself first.
        initial_norm: epsilon_0, in units of pixel values.
        gamma: by which share the norm changes in a step.
        votes: draws of a random model's randomness that judge a point of that ray.
        threat: L2, whose ball the result is projected into.
        objective: J: one that needs nothing but the label (`CrossEntropy`, `Margin`, `DLR`, ...).
        gradient: how the gradient of J is estimated.
    """

    steps: Count = 100
    initial_norm: Positive = 1.0
    gamma: Share = 0.05
    votes: Count = 10
    threat: Threat = field(default_factory=L2)
    objective: Objective = field(default_factory=CrossEntropy)
    gradient: GradientEstimator = field(default_factory=Backprop)

    by_norm = True

    def __post_init__(self) -> None:
        if self.threat.norm != "l2":
            raise OptionError("threat", self.threat, "must be L2, the norm that is minimised")
        if self.objective.asks:
            raise OptionError(
                "objective", self.objective, "must lead away from the label, as CrossEntropy does"
            )

    def with_objective(self, objective: Objective) -> DDN | None:
        """The same attack with another objective; None for those that aim at something else."""
        return None if objective.asks else replace(self, objective=objective)

    @property
    def seeks_nearest(self) -> bool:
        return True

    def scaled(self, effort: float) -> DDN:
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
        # Estimators that look at values, and means over several gradients, shall have the
        # objective's own.
        objective = self.objective
        if self.gradient.exact:
            alone = isinstance(objective, CrossEntropy) and tells(self.gradient, source)
            objective = Judged(LogOdds() if alone else objective)
        loss_fn = Loss(source, objective, labels)
        epsilon = torch.full_like(nearest.distance, self.initial_norm)
        farthest, x = nearest.farthest(), images
        for k in range(self.steps):
            streams = rng.fold(k)
            margin, gradient = self.gradient(loss_fn, x, streams)
            judged = margin if self.gradient.exact else None  # else it is the objective's value
            adversarial = nearest.note(x, judged, streams.fold("judge"))
            if k + 1 == self.steps:
                break
            g, _ = Normalized().step(gradient, None)
            delta = (x - images).add_(g, alpha=annealed(1.0, LAST_STEP, k, self.steps))
            factor = torch.where(adversarial, 1 - self.gamma, 1 + self.gamma)
            epsilon = (epsilon * factor).minimum(farthest)
            # As far as epsilon, also of a change of zero: no infinity times zero.
            length = delta.flatten(1).norm(dim=1).clamp_min(LEAST_LENGTH)
            x = delta.mul_(per_image(epsilon / length)).add_(images).clamp_(0, 1)
