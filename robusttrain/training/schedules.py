"""Schedules of the learning rate over a run, from torch and timm, by name."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from timm.scheduler import PolyLRScheduler, StepLRScheduler, TanhLRScheduler
from timm.scheduler.scheduler import Scheduler
from torch.optim import Optimizer
from torch.optim.lr_scheduler import (
    CosineAnnealingLR,
    LinearLR,
    LRScheduler,
    MultiStepLR,
    OneCycleLR,
    SequentialLR,
)

from robusttrain.core.errors import OptionError, above, at_least

Schedule = Literal["constant", "cosine", "one_cycle", "piecewise", "step", "poly", "tanh"]
SCHEDULES = ("constant", "cosine", "one_cycle", "piecewise", "step", "poly", "tanh")
#: Those that need a run with an end, since they are laid out over all of it.
TO_THE_END = ("cosine", "one_cycle", "poly", "tanh")
#: Those that drop after so many epochs, which are counted in steps.
BY_EPOCHS = ("piecewise", "step")
#: Options of timm's schedules, with what they are where nothing is said; None: must be given.
OPTIONS: dict[str, dict[str, float | None]] = {
    "step": {"decay_epochs": None, "decay_rate": 0.1},
    "poly": {"power": 1.0, "min_lr": 0.0},
    "tanh": {"min_lr": 0.0},
}


@dataclass
class Course:
    """How far along its schedule a run is.

    A run that has to end sooner than its schedule was laid out for takes more of it with each step
    of the optimizer.

    Args:
        rate: steps of the schedule for each of the optimizer's, from now on.
        ahead: how many steps further the schedule is than the optimizer.
    """

    rate: float = 1.0
    ahead: float = 0.0

    def steps(self) -> int:
        """How many steps the schedule takes with the next one of the optimizer."""
        before = round(self.ahead)
        self.ahead += self.rate - 1
        return 1 + round(self.ahead) - before


def options_of(schedule: str, given: Mapping[str, float]) -> dict[str, float]:
    """The options of a schedule, with what was given.

    Raises:
        OptionError: an unknown one, one that is missing, or a value that cannot work.
    """
    own = OPTIONS.get(schedule, {})
    for name, value in given.items():
        if name not in own:
            fix = f"{schedule} takes {', '.join(own) or 'none of timm'}"
            raise OptionError(f"schedule_options.{name}", value, fix)
        check = at_least if name == "min_lr" else above
        check(f"schedule_options.{name}", value, 0)
    taken: dict[str, float | None] = {**own, **given}
    for name in (name for name, value in taken.items() if value is None):
        fix = f"{schedule} needs it: give a number, --schedule.{name} 10"
        raise OptionError(f"schedule_options.{name}", None, fix)
    return {name: float(value) for name, value in taken.items() if value is not None}


def scheduler(
    optimizer: Optimizer,
    schedule: Schedule,
    steps: float,
    per_epoch: int,
    milestones: list[int],
    warmup: float,
    warmup_epochs: float,
    options: Mapping[str, float],
) -> LRScheduler | Scheduler | None:
    """The scheduler, which takes a step after every step of the optimizer; None for a constant
    rate, and for a cycle of a single step.

    Args:
        optimizer: with the highest rate.
        schedule: "constant"; "cosine" to zero; "one_cycle": cosine warm-up for the share ``warmup``
            of the run, then cosine to zero; "piecewise": a tenth after each of ``milestones``;
            timm's "step": times ``decay_rate`` after every ``decay_epochs``; "poly": (1 - t) to the
            ``power``; "tanh": along it.
        steps: of the run; infinite for a run without an end, which only constant, piecewise and
            step rates can take.
        per_epoch: steps of an epoch.
        milestones: epochs after which a piecewise schedule drops.
        warmup: share of the run in which one_cycle rises.
        warmup_epochs: epochs in which any other schedule rises linearly to the highest rate.
        options: of timm's schedules, by name, from `options_of`.
    """
    if schedule == "one_cycle":
        if steps == 1:
            return None  # a cycle of one step would be its end, where the rate is zero
        # torch divides by warmup * steps - 1. If that is zero, the rate rises for two steps instead
        # of one.
        rise = float(warmup)
        if abs(rise * steps - 1) < 1e-6:
            rise = 2 / steps if steps > 2 else 0.0
        highest = optimizer.param_groups[0]["lr"]
        return OneCycleLR(
            optimizer, max_lr=highest, total_steps=int(steps), pct_start=rise, cycle_momentum=False
        )
    rising = round(warmup_epochs * per_epoch)
    if schedule in OPTIONS:
        return _of_timm(optimizer, schedule, steps, per_epoch, rising, options)
    # The warm-up is made before the schedule that follows: SequentialLR wants both to start at the
    # optimizer's own rate.
    linear = (
        LinearLR(optimizer, start_factor=1 / (rising + 1), total_iters=rising) if rising else None
    )
    after: LRScheduler | None = None
    if schedule == "cosine":
        after = CosineAnnealingLR(optimizer, T_max=max(1, int(steps) - rising))
    elif schedule == "piecewise":
        after = MultiStepLR(
            optimizer, [max(0, round(epoch * per_epoch) - rising) for epoch in milestones]
        )
    if linear is None or after is None:
        return linear or after
    return SequentialLR(optimizer, [linear, after], milestones=[rising])


def _of_timm(
    optimizer: Optimizer,
    schedule: str,
    steps: float,
    per_epoch: int,
    rising: int,
    options: Mapping[str, float],
) -> Scheduler:
    """A schedule of timm's, counted in steps; ``rising`` of them are the warm-up."""
    highest = optimizer.param_groups[0]["lr"]
    warmup = {"warmup_t": rising, "warmup_lr_init": highest / (rising + 1), "t_in_epochs": False}
    if schedule == "step":
        every = max(1, round(options["decay_epochs"] * per_epoch))
        rate = options["decay_rate"]
        return StepLRScheduler(optimizer, every, rate, warmup_prefix=False, **warmup)
    after = max(1, int(steps) - rising)
    low = options["min_lr"]
    if schedule == "poly":
        power = options["power"]
        return PolyLRScheduler(
            optimizer, after, power=power, lr_min=low, warmup_prefix=True, **warmup
        )
    return TanhLRScheduler(optimizer, after, lr_min=low, warmup_prefix=True, **warmup)
