"""Schedules of the learning rate over a run, from torch, by name."""

from __future__ import annotations

from typing import Literal

from torch.optim import Optimizer
from torch.optim.lr_scheduler import (
    CosineAnnealingLR,
    LinearLR,
    LRScheduler,
    MultiStepLR,
    OneCycleLR,
    SequentialLR,
)

Schedule = Literal["constant", "cosine", "one_cycle", "piecewise"]
SCHEDULES = ("constant", "cosine", "one_cycle", "piecewise")


def scheduler(
    optimizer: Optimizer,
    schedule: Schedule,
    steps: float,
    per_epoch: int,
    milestones: list[int],
    warmup: float,
    warmup_epochs: float,
) -> LRScheduler | None:
    """The scheduler, which takes a step after every step of the optimizer; None for a constant
    rate.

    Args:
        optimizer: with the highest rate.
        schedule: "constant"; "cosine" to zero; "one_cycle": cosine warm-up for the share ``warmup``
            of the run, then cosine to zero; "piecewise": a tenth after each of ``milestones``.
        steps: of the run; infinite for a run without an end, which only constant and piecewise
            rates can take.
        per_epoch: steps of an epoch.
        milestones: epochs after which a piecewise schedule drops.
        warmup: share of the run in which one_cycle rises.
        warmup_epochs: epochs in which any other schedule rises linearly to the highest rate.
    """
    if schedule == "one_cycle":
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
