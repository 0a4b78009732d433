"""Other versions of an attack, made from its own parts: a single step, the members of a wrapper."""

from __future__ import annotations

from robusttrain.attacks import (
    Attack,
    Backprop,
    CrossEntropy,
    GradientEstimator,
    Objective,
    ProjectedGradient,
)
from robusttrain.attacks.parts.updates import STEEPEST


def parts(attack: Attack) -> list[Attack]:
    """The attack itself, or all attacks inside a wrapper."""
    return [part for member in attack.members for part in parts(member)] or [attack]


def objective_of(attack: Attack) -> Objective:
    """The objective of the attack, or of the first attack in a wrapper that has one; else cross
    entropy.
    """
    said = [part.maximises for part in parts(attack) if part.maximises is not None]
    return said[0] if said else CrossEntropy()


def estimator_of(attack: Attack) -> GradientEstimator | None:
    """The estimator of the attack, or of the first attack in a wrapper that has one.

    An attack that takes gradients without an estimator must use automatic differentiation. None for
    an attack that takes no gradients.
    """
    said = [part.estimator for part in parts(attack) if part.estimator is not None]
    if said:
        return said[0]
    return Backprop() if attack.cost().gradients else None


def climber(attack: Attack) -> Attack:
    """The attack, or the first attack in a wrapper, that follows gradients and says what it
    maximises; if none says so, the first that follows gradients.
    """
    follow = [part for part in parts(attack) if part.cost().gradients]
    return next((part for part in follow if part.maximises is not None), follow[0])


def ascent(attack: Attack, steps: int) -> ProjectedGradient:
    """Plain projected ascent from the image, with the attack's threat, objective and gradient."""
    return ProjectedGradient(
        steps=steps,
        random_start=False,
        threat=attack.threat,
        objective=objective_of(attack),
        gradient=estimator_of(attack) or Backprop(),
        rule=STEEPEST[attack.threat.norm],
    )


def single_step(attack: Attack) -> ProjectedGradient:
    """One step of length epsilon from the image itself: the fast gradient method with the attack's
    own gradient.
    """
    return ProjectedGradient(
        steps=1,
        step_size=attack.threat.epsilon or 1.0,
        random_start=False,
        threat=attack.threat,
        objective=objective_of(attack),
        gradient=estimator_of(attack) or Backprop(),
        rule=STEEPEST[attack.threat.norm],
    )
