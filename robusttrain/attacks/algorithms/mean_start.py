"""White-box transfer that starts from the mean of the transformed image."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor, nn

from robusttrain.attacks.algorithms.projected_gradient import ProjectedGradient
from robusttrain.attacks.asking import Queried
from robusttrain.attacks.base import Attack, Cost, times
from robusttrain.attacks.parts.gradients import Backprop, GradientEstimator, mean_over_copies
from robusttrain.attacks.parts.objectives import CrossEntropy, Objective
from robusttrain.attacks.parts.threats import Linf, Threat
from robusttrain.attacks.parts.updates import Sign, UpdateRule
from robusttrain.core.checked import Count, Positive, checked
from robusttrain.core.errors import UserError
from robusttrain.core.rng import Rng


def mean_transform(
    transform: Callable[[Tensor, Rng], Tensor], images: Tensor, rng: Rng, draws: int
) -> Tensor:
    """E[g(x)] over ``draws`` draws, (B, C, H, W), in chunks; ``transform`` is g."""

    def several(numbers: range) -> tuple[Tensor, Tensor]:
        with torch.no_grad():
            transformed = transform(images.repeat(len(numbers), 1, 1, 1), rng.tile(numbers))
        return transformed.new_zeros(len(transformed)), transformed

    return mean_over_copies(draws, None, images, several)[1]


@checked
@dataclass(frozen=True)
class MeanStart(Attack):
    """Projected gradient ascent from x_0 = E[g(x)], the mean transformation [P1 4.2, "white-box
    transfer attack"].

    The paper climbs freely from x_0, and dismisses the results as visibly changed. An attack that
    counts stays within the threat, so x_0 is projected into the ball first.

    Args:
        draws: draws of g that the mean is taken over; the paper takes 5,000.
        around: None starts at the mean projected into the threat. A radius lets the attack move
            freely within that Linf ball around the mean itself, as the paper does; the threat must
            then be wide enough for the result. The rule of a threat of another norm becomes that of
            Linf, and a step keeps its share of the radius (`ProjectedGradient.within`).
        steps, step_size, relative_step_size, threat, objective, gradient, rule: as for
            `ProjectedGradient`.
    """

    draws: Count = 5000
    around: Positive | None = None
    steps: int = 50
    step_size: float | None = None
    relative_step_size: float | None = None
    threat: Threat = field(default_factory=Linf)
    objective: Objective = field(default_factory=CrossEntropy)
    gradient: GradientEstimator = field(default_factory=Backprop)
    rule: UpdateRule = field(default_factory=Sign)
    asks_g = True

    def __post_init__(self) -> None:
        self.ascent(self.threat)  # checks the rest

    def ascent(self, threat: Threat) -> ProjectedGradient:
        """The attack that climbs from the start."""
        return ProjectedGradient(
            steps=self.steps,
            step_size=self.step_size,
            relative_step_size=self.relative_step_size,
            threat=threat,
            objective=self.objective,
            gradient=self.gradient,
            rule=self.rule,
        )

    @property
    def rounds_well(self) -> bool:
        return self.ascent(self.threat).rounds_well

    def within(self, threat: Threat) -> MeanStart:
        moved = self.ascent(self.threat).within(threat)
        return replace(self._as(moved), rule=moved.rule)

    def at_radius(self, epsilon: float) -> MeanStart:
        return self._as(self.ascent(self.threat).at_radius(epsilon))

    def scaled(self, effort: float) -> MeanStart:
        draws = times(self.draws, min(effort, 1.0), 10)  # more draws hardly move the mean
        return replace(self._as(self.ascent(self.threat).scaled(effort)), draws=draws)

    def _as(self, ascent: ProjectedGradient) -> MeanStart:
        return replace(
            self,
            steps=ascent.steps,
            step_size=ascent.step_size,
            relative_step_size=ascent.relative_step_size,
            threat=ascent.threat,
        )

    def cost(self) -> Cost:
        cost = self.ascent(self.threat).cost()
        return Cost(cost.gradients, cost.queries + self.draws)

    def check(self, source: nn.Module) -> None:
        if not Queried.of(source).transforms:
            raise UserError(
                "MeanStart: this source has no g to start from: --attack wt-mean-start has one (in"
                " Python, source ClassifierOnly)"
            )

    def run(self, source: nn.Module, images: Tensor, labels: Tensor, rng: Rng) -> Tensor:
        self.check(source)
        mean = mean_transform(Queried.of(source).transform, images, rng.fold("mean"), self.draws)
        if mean.shape != images.shape:
            raise UserError(
                f"MeanStart: the defense turns images of {tuple(images.shape[1:])} into"
                f" {tuple(mean.shape[1:])}; their mean is no start"
            )
        if self.around is None:
            return self.ascent(self.threat).climb(
                source, self.threat.project(mean, images), images, labels, rng
            )
        centre = mean.clamp(0, 1)
        freely = self.ascent(self.threat).within(Linf(self.around))
        adversarial = freely.climb(source, centre, centre, labels, rng, images)
        return self.threat.project(adversarial, images)
