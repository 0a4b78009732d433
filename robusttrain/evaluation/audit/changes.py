"""Other versions of an attack: another epsilon, more steps, more draws, one step, an estimator that
is watched.

All of them work on the fields that the attacks have, and reach the attacks that wrappers hold.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields, is_dataclass, replace
from typing import Any

from robusttrain.attacks import (
    Attack,
    Average,
    AverageLogits,
    Backprop,
    CrossEntropy,
    GradientEstimator,
    Normalized,
    Objective,
    ProjectedGradient,
    Sign,
    UnitRMSD,
    UpdateRule,
)

#: Steps of a doubled attack, at least: two single steps are no iterative attack.
LEAST_STEPS = 10
#: Length of a doubled attack's way in radii (Madry et al. 2018 take 2.5): finer steps where there
#: are more of them.
REACH = 2.5
STEEPEST: dict[str, UpdateRule] = {"linf": Sign(), "l2": Normalized(), "rmsd": UnitRMSD()}


def _has(attack: Attack, name: str) -> bool:
    return any(each.name == name for each in fields(attack))  # type: ignore[arg-type]


def rebuilt(attack: Attack, change: Callable[[Attack], Attack]) -> Attack:
    """``change`` applied to the attacks that a wrapper holds, then to the wrapper."""
    if not is_dataclass(attack):
        return change(attack)
    inner: dict[str, Any] = {}
    for each in fields(attack):
        value = getattr(attack, each.name)
        if isinstance(value, Attack):
            inner[each.name] = rebuilt(value, change)
        elif (
            isinstance(value, list | tuple)
            and value
            and all(isinstance(item, Attack) for item in value)
        ):
            inner[each.name] = type(value)(rebuilt(item, change) for item in value)
    changed: Attack = replace(attack, **inner) if inner else attack  # type: ignore[assignment]
    return change(changed)


def with_epsilon(attack: Attack, epsilon: float) -> Attack:
    """The attack within another radius; a step size in pixel values grows or shrinks with it.

    Raises:
        OptionError: the attack cannot be moved out of its own threat.
    """
    attack.within(replace(attack.threat, epsilon=epsilon))  # type: ignore[type-var]

    def change(part: Attack) -> Attack:
        if not (is_dataclass(part) and _has(part, "threat")):
            return part
        values: dict[str, Any] = {"threat": replace(part.threat, epsilon=epsilon)}  # type: ignore[type-var]
        step_size = getattr(part, "step_size", None)
        if step_size is not None and epsilon > 0 and part.threat.epsilon > 0:
            values["step_size"] = step_size * epsilon / part.threat.epsilon
        return replace(part, **values)  # type: ignore[type-var]

    return rebuilt(attack, change)


def short(attack: Attack) -> Attack:
    """The attack cut to a few steps, where only its bookkeeping is of interest."""

    def change(part: Attack) -> Attack:
        values = {
            name: min(getattr(part, name), most)
            for name, most in (("steps", 3), ("queries", 60), ("draws", 10))
            if is_dataclass(part)
            and isinstance(getattr(part, name, None), int)
            and _has(part, name)
        }
        return replace(part, **values) if values else part  # type: ignore[type-var]

    return rebuilt(attack, change)


def more_steps(attack: Attack) -> Attack | None:
    """The attack with twice the steps (or queries), and at least `LEAST_STEPS`; None where it has
    neither.
    """
    changed = False

    def change(part: Attack) -> Attack:
        nonlocal changed
        if isinstance(part, ProjectedGradient):
            changed = True
            steps = max(2 * part.steps, LEAST_STEPS)
            finer = REACH * part.threat.epsilon / steps
            # A step that was too short stays as it is: doubling has to show what it hides.
            size = min(part.alpha, finer) if finer > 0 else part.alpha
            if size <= 0:
                return replace(part, steps=steps)
            return replace(part, steps=steps, step_size=size, relative_step_size=None)
        for name in ("steps", "queries"):
            if is_dataclass(part) and _has(part, name):
                changed = True
                return replace(part, **{name: 2 * getattr(part, name)})  # type: ignore[return-value]
        return part

    found = rebuilt(attack, change)
    return found if changed else None


def averaged_draws(attack: Attack) -> int:
    """Over how many draws of a random model an attack averages before it decides: 1 where it does
    not.
    """

    def of(part: Any) -> int:
        if isinstance(part, Average | AverageLogits):
            return part.draws * of(getattr(part, "inner", None))
        if isinstance(part, GradientEstimator):
            # Other estimators that stack copies, or ask along many directions, see a draw in each.
            return max(of(getattr(part, "inner", None)), part.evaluations, part.queries // 2)
        if not is_dataclass(part):
            return 1
        if isinstance(part, Attack):
            nested = [getattr(part, each.name) for each in fields(part)]
            inner = [
                item
                for value in nested
                for item in (value if isinstance(value, list | tuple) else [value])
            ]
            return max(
                [
                    1,
                    getattr(part, "votes", 1),
                    *(of(i) for i in inner if isinstance(i, Attack | GradientEstimator)),
                ]
            )
        return 1

    return of(attack)


def more_draws(attack: Attack, least: int) -> Attack | None:
    """The attack with twice the draws of an average, or votes, and at least ``least``; None where
    it has neither.
    """
    changed = False

    def doubled(estimator: GradientEstimator) -> GradientEstimator:
        if isinstance(estimator, Average | AverageLogits):
            return replace(estimator, draws=max(2 * estimator.draws, least))
        return Average(draws=least, inner=estimator)

    def change(part: Attack) -> Attack:
        nonlocal changed
        if not is_dataclass(part):
            return part
        values: dict[str, Any] = {}
        if _has(part, "gradient"):
            values["gradient"] = doubled(part.gradient)  # type: ignore[attr-defined]
        if _has(part, "votes"):
            values["votes"] = max(2 * part.votes, least)  # type: ignore[attr-defined]
        changed = changed or bool(values)
        return replace(part, **values) if values else part

    found = rebuilt(attack, change)
    return found if changed else None


def objective_of(attack: Attack) -> Objective:
    """What the attack maximises, as far as it says so; else the cross entropy."""
    found = _first(attack, "objective", Objective)
    return found if isinstance(found, Objective) else CrossEntropy()


def estimator_of(attack: Attack) -> GradientEstimator | None:
    """How the attack estimates gradients; None for one that does not."""
    found = _first(attack, "gradient", GradientEstimator)
    if isinstance(found, GradientEstimator):
        return found
    return Backprop() if attack.cost().gradients else None


def _first(attack: Attack, name: str, kind: type) -> Any:
    value = getattr(attack, name, None)
    if isinstance(value, kind) or not is_dataclass(attack):
        return value
    for each in fields(attack):
        inner = getattr(attack, each.name)
        for item in inner if isinstance(inner, list | tuple) else [inner]:
            if isinstance(item, Attack) and (found := _first(item, name, kind)) is not None:
                return found
    return None


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
