"""The callbacks of train.py: what attacks during validation, and what keeps weights."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from pytorch_lightning.callbacks import (
    Callback,
    LearningRateMonitor,
    ModelCheckpoint,
)

from robusttrain.config.attacks import scenarios
from robusttrain.core.errors import OptionError, under
from robusttrain.core.telling import Say, silence
from robusttrain.evaluation import Scenario
from robusttrain.training.callbacks import (
    EMA,
    SWA,
    InTime,
    Kept,
    Overfitting,
    Pace,
    Patience,
    Pictures,
    RobustAccuracy,
    Undo,
)
from robusttrain.training.plan import TrainingPlan


def monitored(plan: TrainingPlan, inner: Scenario | None) -> str:
    """What 'best' means, if the plan does not say it.

    Args:
        plan: of the training.
        inner: what the objective trains against.
    """
    if plan.monitor is not None:
        return plan.monitor
    # The epoch that is best on clean images is the one that has overfitted most.
    return "robust/worst_case" if inner is not None and plan.robust.every == 1 else "val/accuracy"


def watchers(
    plan: TrainingPlan, around: bool, inner: Scenario | None = None, say: Say = silence
) -> list[Callback]:
    """Callbacks that attack during validation.

    Args:
        plan: of the training.
        around: whether attacks have to go around a defense, which has no useful gradient.
        inner: what the objective trains against.
        say: takes what the guard against overfitting has to tell.
    """
    names = plan.robust.names or ["bpda-i-quick" if around else "pgd-quick"]
    attacks = scenarios(names, epsilon=plan.robust.epsilon, option="--robust.attacks")
    allowed, monitor = ["val/accuracy", "val/loss"], monitored(plan, inner)
    if plan.robust.every == 1:
        allowed += [f"robust/{name}" for name in (*attacks, "worst_case")]
    if monitor not in allowed:
        raise OptionError(
            "--monitor", monitor, f"must be logged in every epoch: one of {', '.join(allowed)}"
        )
    first = next(iter(attacks))
    if inner is not None and plan.robust.every and plan.robust.epsilon is None:
        trained, seen = inner.attack.threat, attacks[first].attack.threat
        if (trained.norm, trained.epsilon) != (seen.norm, seen.epsilon):
            fix = "--robust.epsilon says how far"
            if trained.norm != seen.norm:
                fix = (
                    "--robust.attacks names attacks in that norm (pgd-l2 in l2), and a threat of"
                    " another class keeps the radius that was there until its epsilon is said"
                )
            say(
                f"validation attacks within {seen.norm} {seen.epsilon:g}, training within"
                f" {trained.norm} {trained.epsilon:g}: {fix}"
            )
    with under("--pictures"):
        watching: list[Callback] = [
            Pictures(
                attacks[first], first, plan.pictures.images, plan.pictures.every, seed=plan.seed
            )
        ]
    if plan.robust.every:
        with under("--robust"):
            watching.append(
                RobustAccuracy(
                    attacks, plan.robust.every, plan.robust.images, plan.robust.draws, plan.seed
                )
            )
        guard = _guard(plan, attacks, names[0], inner, say)
        watching += [guard, Undo(guard, say)] if plan.guard.undo else [guard]
    return watching


def idle_undo(plan: TrainingPlan, watching: Sequence[Callback], strengthens: bool) -> str | None:
    """Why ``--guard.undo`` would never take anything back; None where it may.

    Args:
        plan: of the training.
        watching: what `watchers` made of it.
        strengthens: whether the objective has an inner attack of which more steps can be taken.
    """
    if not plan.guard.undo:
        return None
    guards = [each for each in watching if isinstance(each, Overfitting)]
    if not guards:
        why = "--robust.every 0 leaves all epochs without a look at robust accuracy"
    elif not strengthens:
        why = "the inner attack has no steps that could be doubled"
    elif guards[0].attacks is None:
        why = "the attacks of validation have another norm than training's, so no collapse is seen"
    else:
        return None
    return f"--guard.undo true has no effect: {why}"


def _guard(
    plan: TrainingPlan,
    attacks: dict[str, Scenario],
    first: str,
    inner: Scenario | None,
    say: Say,
) -> Overfitting:
    """What looks out for overfitting: the first attack of validation is the check."""
    check, name = None, next(iter(attacks))
    if inner is not None:
        threats = [each.attack.threat for each in (inner, attacks[name])]
        if threats[0].norm != threats[1].norm:
            inner = None  # no common measure of strength
        elif threats[0].epsilon != threats[1].epsilon:
            (check,) = scenarios(
                [first], epsilon=threats[0].epsilon, option="--robust.attacks"
            ).values()
    settings = (plan.robust.images, plan.robust.draws, plan.robust.every, plan.seed)
    with under("--guard"):
        return Overfitting(
            f"robust/{name}",
            inner,
            check,
            *settings,
            say,
            drop=plan.guard.drop,
            fall=plan.guard.fall,
        )


def keepers(plan: TrainingPlan, monitor: str, folder: Path, say: Say = silence) -> list[Callback]:
    """Callbacks that keep weights and figures.

    Args:
        plan: of the training.
        monitor: what 'best' means.
        folder: for checkpoints.
        say: takes a line where training waits for its data, or will have fewer epochs.
    """
    better = "min" if monitor.endswith("loss") else "max"
    keeping: list[Callback] = [LearningRateMonitor(), Pace(say)]
    if (minutes := plan.training.get("minutes")) is not None:
        least = 1 if plan.swa.start is None else plan.swa.start + 2
        keeping.append(InTime(minutes, max(3, plan.robust.every), least, say))
    if plan.early_stopping:
        keeping.append(Patience(monitor, patience=plan.early_stopping, mode=better))
    if plan.swa.start is not None:
        with under("--swa"):
            keeping.append(SWA(plan.swa.start, plan.swa.batches))
    if plan.ema:
        # After the callbacks that attack: they must see the averaged weights, which this one swaps
        # in and out.
        keeping.append(EMA(plan.ema))
    best = Kept(folder, filename="best", monitor=monitor, mode=better, enable_version_counter=False)
    last = Kept(folder, filename="last", save_on_train_epoch_end=True, enable_version_counter=False)
    return [*keeping, best, last]


def keep_in(folder: Path, keeping: Sequence[Callback]) -> None:
    """Let `keepers` save in this folder: its name is certain only once it was made."""
    for each in keeping:
        if isinstance(each, ModelCheckpoint):
            each.dirpath = os.path.realpath(folder)  # as its constructor does
