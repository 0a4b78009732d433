"""The callbacks of train.py: what attacks during validation, and what keeps weights."""

from __future__ import annotations

from pathlib import Path

from jsonargparse import Namespace
from pytorch_lightning.callbacks import (
    Callback,
    EarlyStopping,
    EMAWeightAveraging,
    LearningRateMonitor,
    ModelCheckpoint,
)

from robusttrain.config.attacks import scenarios
from robusttrain.config.command_line import listed, plain
from robusttrain.core.console import say
from robusttrain.core.errors import OptionError, at_least, under
from robusttrain.evaluation import Scenario
from robusttrain.training.callbacks import SWA, Overfitting, Pace, Pictures, RobustAccuracy


def watchers(config: Namespace, around: bool, inner: Scenario | None = None) -> list[Callback]:
    """Callbacks that attack during validation.

    Args:
        config: the parsed command line; the default of ``monitor`` is filled in.
        around: whether attacks have to go around a defense, which has no useful gradient.
        inner: what the objective trains against.
    """
    at_least("--robust.every", config.robust.every, 0)
    names = listed(config.robust.attacks) or ["bpda-i-quick" if around else "pgd-quick"]
    attacks = scenarios(names, epsilon=config.robust.epsilon, option="--robust.attacks")
    allowed = ["val/accuracy", "val/loss"]
    if config.robust.every == 1:
        allowed += [f"robust/{name}" for name in (*attacks, "worst_case")]
    if config.monitor is None:
        # The epoch that is best on clean images is the one that has overfitted most.
        config.monitor = "robust/worst_case" if inner is not None and config.robust.every == 1 else "val/accuracy"
    if config.monitor not in allowed:
        raise OptionError("--monitor", config.monitor, f"must be logged in every epoch: one of {', '.join(allowed)}")
    first = next(iter(attacks))
    with under("--pictures"):
        found: list[Callback] = [
            Pictures(attacks[first], first, config.pictures.images, config.pictures.every, seed=config.seed)
        ]
    if config.robust.every:
        settings = plain(config.robust)
        with under("--robust"):
            found.append(RobustAccuracy(attacks, settings["every"], settings["images"], settings["draws"], config.seed))
        found.append(_guard(config, attacks, names[0], inner))
    return found


def _guard(config: Namespace, attacks: dict[str, Scenario], first: str, inner: Scenario | None) -> Overfitting:
    """What looks out for overfitting: the first attack of validation is the check."""
    check, name = None, next(iter(attacks))
    if inner is not None:
        threats = [each.attack.threat for each in (inner, attacks[name])]
        if threats[0].norm != threats[1].norm:
            inner = None  # no common measure of strength
        elif threats[0].epsilon != threats[1].epsilon:
            (check,) = scenarios([first], epsilon=threats[0].epsilon, option="--robust.attacks").values()
    settings = (config.robust.images, config.robust.draws, config.robust.every, config.seed)
    with under("--guard"):
        return Overfitting(
            f"robust/{name}", inner, check, *settings, say, drop=config.guard.drop, fall=config.guard.fall
        )


def keepers(config: Namespace, folder: Path) -> list[Callback]:
    """Callbacks that keep weights."""
    better = "min" if config.monitor.endswith("loss") else "max"
    found: list[Callback] = [LearningRateMonitor(), Pace()]
    if config.early_stopping:
        found.append(EarlyStopping(config.monitor, patience=config.early_stopping, mode=better))
    if config.swa.start is not None:
        with under("--swa"):
            found.append(SWA(config.swa.start, config.swa.batches))
    if config.ema:
        # After the callbacks that attack: they must see the averaged weights, which this one swaps in and out.
        found.append(EMAWeightAveraging(decay=config.ema))
    best = ModelCheckpoint(folder, filename="best", monitor=config.monitor, mode=better, enable_version_counter=False)
    last = ModelCheckpoint(folder, filename="last", save_on_train_epoch_end=True, enable_version_counter=False)
    return [*found, best, last]
