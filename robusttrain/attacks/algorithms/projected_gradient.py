"""Projected gradient ascent, of which the fast gradient family are special cases."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import torch
from torch import Tensor, nn

from robusttrain.attacks.base import Attack, Cost, times
from robusttrain.attacks.parts.gradients import Backprop, GradientEstimator
from robusttrain.attacks.parts.loss import Loss
from robusttrain.attacks.parts.objectives import CrossEntropy, Objective
from robusttrain.attacks.parts.threats import Linf, Threat
from robusttrain.attacks.parts.updates import (
    MOMENTUM,
    STEEPEST,
    Sign,
    UpdateRule,
    check_rule,
    in_norm,
)
from robusttrain.core.checked import Positive, Whole, checked
from robusttrain.core.errors import OptionError
from robusttrain.core.rng import Rng

#: The least number of steps of an attack that is given more: two single steps are no iteration.
LEAST_STEPS = 10
#: The length of all steps together, in radii, if no step size is given (Madry et al. 2018).
REACH = 2.5


@checked
@dataclass(frozen=True)
class ProjectedGradient(Attack):
    """x_{t+1} = P(x_t + alpha u(grad L(x_t))) (Madry et al. 2018; g itself is one of these, [P1 eq.
    3]).

    Symbols: P projection into the threat, alpha step size, u update rule, L objective. One step of
    size epsilon from the image itself is FGSM; more steps I-FGSM; momentum, input diversity and
    noise reduction are the update rule and the estimator.

    Args:
        steps: number of steps; 0 returns the start.
        step_size: alpha, in pixel values (Linf) or Euclidean length (L2).
        relative_step_size: alpha as a fraction of epsilon; without either of them, all steps
            together are 2.5 epsilon long (Madry et al. 2018).
        random_start: whether x_0 is a random point of the ball instead of the image.
        threat: where adversarial images may go.
        objective: what to maximise.
        gradient: how the gradient is estimated.
        rule: how a gradient becomes a step; one of steepest ascent, or with momentum, has to be
            that of the threat's norm (`STEEPEST`, `MOMENTUM`).
    """

    steps: Whole = 10
    step_size: Positive | None = None
    relative_step_size: Positive | None = None
    random_start: bool = True
    threat: Threat = field(default_factory=Linf)
    objective: Objective = field(default_factory=CrossEntropy)
    gradient: GradientEstimator = field(default_factory=Backprop)
    rule: UpdateRule = field(default_factory=Sign)

    def __post_init__(self) -> None:
        check_rule(self.rule, self.threat)
        if self.step_size is not None and self.relative_step_size is not None:
            given = (self.step_size, self.relative_step_size)
            raise OptionError(
                "step_size", given, "give at most one of step_size and relative_step_size"
            )

    @property
    def alpha(self) -> float:
        """The step size in the threat's own units."""
        if self.step_size is not None:
            return self.step_size
        if self.relative_step_size is not None:
            return self.relative_step_size * self.threat.epsilon
        return REACH * self.threat.epsilon / max(1, self.steps)

    @property
    def reach(self) -> float | None:
        """Of rules whose steps are all as long."""
        momentum = MOMENTUM.get(self.threat.norm)
        as_long = self.rule == STEEPEST.get(self.threat.norm) or (
            momentum is not None and isinstance(self.rule, momentum)
        )
        return self.steps * self.alpha if as_long else None

    @property
    def rounds_well(self) -> bool:
        return self.gradient.queries == 0  # a difference of two answers is all rounding

    def within(self, threat: Threat) -> ProjectedGradient:
        """The same attack in another threat.

        In another norm, a rule of steepest ascent or momentum becomes that of the norm, and a step
        keeps its share of the radius.
        """
        if threat.norm == self.threat.norm:
            return replace(self, threat=threat)
        size = self.step_size
        if size is not None and self.threat.epsilon > 0:
            size = size * threat.epsilon / self.threat.epsilon
        rule = in_norm(self.rule, threat.norm)
        return replace(self, threat=threat, step_size=size, rule=rule)

    def at_radius(self, epsilon: float) -> ProjectedGradient:
        threat = self.threat.at(epsilon)
        if self.step_size is None or not (epsilon > 0 and self.threat.epsilon > 0):
            return replace(self, threat=threat)
        return replace(
            self, threat=threat, step_size=self.step_size * epsilon / self.threat.epsilon
        )

    def scaled(self, effort: float) -> ProjectedGradient:
        steps = times(self.steps, effort)
        if effort <= 1:
            return replace(self, steps=steps)
        steps = max(steps, LEAST_STEPS)
        if self.step_size is None and self.relative_step_size is None:
            return replace(self, steps=steps)
        finer = REACH * self.threat.epsilon / steps
        # A step that was too short stays as it is: more steps then show what it hid.
        size = min(self.alpha, finer) if finer > 0 else self.alpha
        if size <= 0:
            return replace(self, steps=steps)
        return replace(self, steps=steps, step_size=size, relative_step_size=None)

    def cost(self) -> Cost:
        return Cost(
            gradients=self.steps * self.gradient.evaluations,
            queries=self.steps * self.gradient.queries + int(self.objective.asks),
        )

    def run(self, source: nn.Module, images: Tensor, labels: Tensor, rng: Rng) -> Tensor:
        start = self.threat.random_start(images, rng.fold("start")) if self.random_start else images
        return self.climb(source, start, images, labels, rng)

    def climb(
        self,
        source: nn.Module,
        start: Tensor,
        images: Tensor,
        labels: Tensor,
        rng: Rng,
        clean: Tensor | None = None,
    ) -> Tensor:
        """The loop, from x_0 = ``start`` within the threat around ``images``; the goal is that of
        the ``clean`` images, which are ``images`` where nobody gives others.
        """
        aimed_from = images if clean is None else clean
        goal = self.objective.aim(source, aimed_from, labels, rng.fold("aim"))
        loss_fn = Loss(source, self.objective, goal)
        adversarial = start
        state = self.rule.init(images)
        for t in range(self.steps):
            _, gradient = self.gradient(loss_fn, adversarial, rng.fold(t))
            step, state = self.rule.step(gradient, state)
            adversarial = self.threat.project(
                torch.add(adversarial, step, alpha=self.alpha), images
            )
        return adversarial
