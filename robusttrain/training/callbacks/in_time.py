"""A run that ends about when it was asked to, also where the machine becomes slower."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import asdict
from typing import Any

import pytorch_lightning as pl

from robusttrain.core.telling import Say, duration, silence
from robusttrain.training.schedules import Course

#: Seconds of a run before its pace is believed: the first steps of a process are slower.
EARLIEST = 60.0


class InTime(pl.Callback):
    """Lets a training of a stated time have fewer epochs than were planned, where epochs take
    longer than was measured: other work may share the machine by now.

    After each epoch the time of the last ones says how many more fit. Where it is fewer than were
    planned, the run ends sooner. So that its learning rate still comes to the schedule's end, a
    further step is more than one step of the schedule (`robusttrain.training.schedules.Course`).
    Where epochs become faster again, more of them fit again, up to those that were planned. At
    least one epoch more is trained, in which the rate falls to its end. Of several processes all do
    what the first one's clock says.

    Args:
        minutes: that the run may take, from the first step on.
        recent: epochs whose mean time is that of the next ones; as many as validation attacks
            once, so that each of them has its share of it.
        least: epochs that the run has in any case.
        say: takes a line where the number of epochs changes.
        clock: gives seconds.
    """

    def __init__(
        self,
        minutes: float,
        recent: int = 3,
        least: int = 1,
        say: Say = silence,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.minutes, self.recent, self.least, self.say, self.clock = (
            minutes,
            recent,
            least,
            say,
            clock,
        )
        #: Epochs that were planned.
        self.planned = 0
        #: Epochs that fit; None as long as these are the planned ones.
        self.fitting: int | None = None
        #: Seconds of the epochs so far, earlier parts of a run that went on among them.
        self.spent: list[float] = []
        #: Of the run.
        self.course = Course()
        self.last = 0.0

    def state_dict(self) -> dict[str, Any]:
        return {"fitting": self.fitting, "spent": self.spent, "course": asdict(self.course)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.fitting, self.spent = state_dict["fitting"], [*state_dict["spent"]]
        self.course = Course(**state_dict["course"])

    def on_train_start(self, trainer: pl.Trainer, pl_module: Any) -> None:
        self.planned, self.last = trainer.max_epochs or 0, self.clock()
        pl_module.course = self.course
        if self.fitting is not None:
            trainer.fit_loop.max_epochs = self.fitting

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: Any) -> None:
        now = self.clock()
        self.spent.append(now - self.last)
        self.last = now
        done, spent = trainer.current_epoch + 1, sum(self.spent)
        recent = self.spent[-self.recent :]
        each = sum(recent) / len(recent)
        epochs = self.fitting or self.planned
        if spent >= EARLIEST and done < epochs:
            more = math.floor((60 * self.minutes - spent) / each)
            epochs = min(self.planned, max(done + 1, self.least, done + more))
        epochs = trainer.strategy.broadcast(epochs)
        if epochs != trainer.max_epochs:
            self._change(epochs, done, each, trainer)

    def _change(self, epochs: int, done: int, each: float, trainer: pl.Trainer) -> None:
        self.say(
            f"--training.minutes {self.minutes:g}: {epochs} epochs instead of {trainer.max_epochs},"
            f" since one takes about {duration(each)} by now; the learning rate falls accordingly"
        )
        # Steps of the optimizer: in an epoch, until now, and at most; max_steps ends the schedule.
        steps = math.ceil(trainer.num_training_batches / trainer.accumulate_grad_batches)
        taken, most = done * steps, trainer.max_steps if trainer.max_steps > 0 else math.inf
        left = min(self.planned * steps, most) - taken - self.course.ahead
        if (to_come := min(epochs * steps, most) - taken) > 0:
            self.course.rate = left / to_come
        trainer.fit_loop.max_epochs = self.fitting = epochs
