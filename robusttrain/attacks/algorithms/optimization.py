"""The optimisation-based attack of Liu et al.: Adam on the image, for one model or several."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import torch
from torch import Tensor, nn

from robusttrain.attacks.asking import Queried
from robusttrain.attacks.base import Attack, Cost, times
from robusttrain.attacks.parts.gradients import Backprop, GradientEstimator
from robusttrain.attacks.parts.loss import Loss
from robusttrain.attacks.parts.objectives import Objective, WrongProbability
from robusttrain.attacks.parts.threats import Linf, Threat, per_image
from robusttrain.attacks.parts.updates import Adam
from robusttrain.core.checked import NonNegative, Positive, Whole, checked
from robusttrain.core.rng import Rng


def away(adversarial: Tensor, images: Tensor) -> Tensor:
    """grad d(x, x*) with respect to x*, (B, C, H, W), for d the root mean square deviation; zero at
    x* = x itself.
    """
    change = adversarial - images
    length = change.flatten(1).norm(dim=1).clamp_min(torch.finfo(change.dtype).tiny)
    return change / per_image(length * change[0].numel() ** 0.5)


@checked
@dataclass(frozen=True)
class Optimization(Attack):
    """The optimisation-based attack of Liu et al. 2017 [P5], sections 2.2, 3.1 and 5.

        one model (equations 3, 5):  x* <- P(x* + eta Adam(grad L(J(x*)) - lambda grad d(x, x*)))
        several (section 5):         x* <- P(x* + eta sum_i Adam_i(grad L(J_i(x*)) - lambda grad
            d(x, x*)))

    Symbols: x the image, x* the adversarial one, from x* = x on; J, J_i models; L the objective,
    log(1 - J_y) untargeted or log J_t towards a target; d the root mean square deviation (RMSD);
    eta the learning rate; P projection into the threat; Adam's step, with a memory of its own for
    each model. With lambda = 0 and one model, this is `ProjectedGradient` with the rule `Adam`.

    The paper writes equation 6 for the mean of the models' probabilities. Model i's part of that
    gradient is the gradient of its own L(J_i), times a positive number for each image. Adam divides
    by what is constant in that number, and the rest is left out here. So the models are
    differentiated one after another, and memory does not grow with their number. An `Ensemble` as
    the source is taken apart in this way; its ``fuse`` then only decides at what a targeted
    objective aims. Equal weights sum the updates, other weights weigh them. With ``apart`` off, an
    ensemble is one model, with one Adam, like any other source.

    Args:
        steps: iterations.
        learning_rate: eta, in pixel values; the paper's 4 (one model) and 8 (each of several) are
            over 255.
        distance_weight: lambda, for pixel values in [0, 1]; 0 in all of the paper's experiments.
        apart: whether an ensemble's members have an Adam each.
        threat: where adversarial images may go. The paper's go anywhere: Linf with epsilon 1.
        objective: L; `TargetedCrossEntropy` for targets.
        gradient: how the gradient of L is estimated.
    """

    steps: Whole = 100
    learning_rate: Positive = 4 / 255
    distance_weight: NonNegative = 0.0
    apart: bool = True
    threat: Threat = field(default_factory=Linf)
    objective: Objective = field(default_factory=WrongProbability)
    gradient: GradientEstimator = field(default_factory=Backprop)

    def scaled(self, effort: float) -> Optimization:
        return replace(self, steps=times(self.steps, effort))

    def cost(self) -> Cost:
        """The cost of all members of an ensemble together, as if they were asked at once."""
        return Cost(
            gradients=self.steps * self.gradient.evaluations,
            queries=self.steps * self.gradient.queries + int(self.objective.asks),
        )

    def run(self, source: nn.Module, images: Tensor, labels: Tensor, rng: Rng) -> Tensor:
        goal = self.objective.aim(source, images, labels, rng.fold("aim"))
        models = Queried.of(source).members if self.apart else [(Queried.of(source), 1.0)]
        adam, adversarial = Adam(), images
        memories = [adam.init(images) for _ in models]
        for t in range(self.steps):
            update = torch.zeros_like(images)
            for i, (model, weight) in enumerate(models):
                loss_fn = Loss(model, self.objective, goal)
                _, gradient = self.gradient(loss_fn, adversarial, rng.fold(t).fold(i))
                if self.distance_weight:
                    gradient = gradient - self.distance_weight * away(adversarial, images)
                step, memories[i] = adam.step(gradient, memories[i])
                update = update.add_(step, alpha=weight * len(models))  # 1 where all weigh the same
            adversarial = self.threat.project(adversarial + self.learning_rate * update, images)
        return adversarial
