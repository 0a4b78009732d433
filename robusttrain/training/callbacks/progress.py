"""Progress as a few lines of text: a bar would fill a log with carriage returns."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.callbacks import ProgressBar
from torch import Tensor

from robusttrain.core.telling import PAUSE


class ProgressLines(ProgressBar):
    """Says the figures of training epochs, in a few lines a minute.

    The first epoch has a line, so that the pace is clear early; the last one has a line; and any
    other epoch has one that ends 20 seconds or more after the last line. A longer epoch also
    has lines on the way, one a minute.

    Args:
        say: takes a line.
        clock: gives seconds.
    """

    #: Seconds without a line after which the place within an epoch is news.
    MINUTE = 60

    def __init__(
        self,
        say: Callable[[str], None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        super().__init__()
        self.say, self.clock = say, clock
        self.enabled = True
        self.started = self.last_said = 0.0
        #: Whether an epoch of this run had its line.
        self.begun = False
        self.before: dict[str, Tensor] = {}
        #: The line of an epoch that was not said; said after all if the epoch is the last.
        self.unsaid = ""

    def enable(self) -> None:
        self.enabled = True

    def disable(self) -> None:
        self.enabled = False

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.unsaid, self.begun = "", False
        self.last_said = self.clock()

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.started, self.before = self.clock(), dict(trainer.callback_metrics)

    def on_train_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        batches = trainer.num_training_batches
        if batch_idx + 1 < batches and self.clock() - self.last_said >= self.MINUTE:
            self._tell(f"{self._epoch(trainer)}: batch {batch_idx + 1} of {batches}")

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        now = self.clock()
        # Lightning keeps figures of earlier epochs, e.g. of attacks that run in every fourth epoch.
        shown = [
            f"{name} {float(value):.3f}"
            for name, value in trainer.callback_metrics.items()
            if name in trainer.progress_bar_metrics and value is not self.before.get(name)
        ]
        self.unsaid = (
            f"{self._epoch(trainer)}: {', '.join([*shown, f'{now - self.started:.0f} s'])}"
        )
        if not self.begun or now - self.last_said >= PAUSE:
            self.begun = True
            self._tell(self.unsaid)

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if self.unsaid:
            self._tell(self.unsaid)

    def _epoch(self, trainer: pl.Trainer) -> str:
        last = epochs(trainer)  # a run of a stated time may have another number of them by now
        return f"epoch {trainer.current_epoch + 1}" + (f"/{last}" if last else "")

    def _tell(self, line: str) -> None:
        self.unsaid, self.last_said = "", self.clock()
        if self.enabled:
            self.say(line)


def epochs(trainer: pl.Trainer) -> int | None:
    """The most epochs that a run will have; None if only its user ends it."""
    limits = [] if trainer.max_epochs is None or trainer.max_epochs < 0 else [trainer.max_epochs]
    if trainer.max_steps > 0:
        steps = math.ceil(trainer.num_training_batches / trainer.accumulate_grad_batches)
        limits.append(math.ceil(trainer.max_steps / max(1, steps)))
    return min(limits, default=None)
