"""Other versions of an attack, made of what it says of itself: one step, the parts of a wrapper."""

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
    """The attack, or all that stand inside a wrapper."""
    return [part for member in attack.members for part in parts(member)] or [attack]


def objective_of(attack: Attack) -> Objective:
    """What the attack maximises, or the first in a wrapper that says so; else the cross entropy."""
    said = [part.maximises for part in parts(attack) if part.maximises is not None]
    return said[0] if said else CrossEntropy()


def estimator_of(attack: Attack) -> GradientEstimator | None:
    """How the attack estimates gradients, or the first in a wrapper that says so.

    One that asks for gradients and does not say how can only have what automatic differentiation
    gives. None for one that asks for none.
    """
    said = [part.estimator for part in parts(attack) if part.estimator is not None]
    if said:
        return said[0]
    return Backprop() if attack.cost().gradients else None


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
