"""Notices catastrophic and robust overfitting while a model is trained, and says so."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytorch_lightning as pl

from robusttrain.core.checked import Positive, checked
from robusttrain.core.errors import OptionError
from robusttrain.core.processes import everyone
from robusttrain.evaluation import Scenario
from robusttrain.training.board import boards, step_of
from robusttrain.training.callbacks.robust_accuracy import RobustAccuracy

#: Accuracies of an epoch: under the check, under the inner attack, and on the training images.
Epoch = dict[str, float]


@checked
class Overfitting(pl.Callback):
    """Compares robust accuracy on validation images with the best epoch's.

    - Catastrophic overfitting (Wong et al. 2020, section 5.4): the model learns the single step
    that
      it is trained with. The check's robust accuracy has fallen by ``drop``, and accuracy under the
      inner attack has not fallen.
    - Robust overfitting (Rice et al. 2020): the check's robust accuracy has fallen by ``fall``,
      while accuracy on the adversarial images of training has risen.

    Logs ``inner/accuracy`` (validation images under the inner attack), ``inner/strength`` (the
    errors under the inner attack as a share of those under the check, 1 where these are none: near
    0, training sees no adversarial images), ``overfitting/fall`` (from the best robust accuracy),
    ``overfitting/catastrophic`` and ``overfitting/robust`` (0 or 1). When an overfitting begins, a
    line in words goes to the log, and to the dashboard under "text".

    Args:
        monitor: name of the check's robust accuracy among the logged metrics.
        inner: the attack of training, run on the same validation images; None for none.
        check: the check under the inner attack's threat; None if ``monitor`` has that threat
            already.
        images: how many validation images.
        draws: fresh draws of a random defense that score each image.
        every: epochs between two looks; the last epoch is always looked at.
        seed: of all randomness here.
        say: takes a line for the log.
        drop: fall of robust accuracy that is catastrophic; 0.2 in the code of Wong et al.
        fall: fall of robust accuracy that is robust overfitting.

    Raises:
        OptionError: a fall of more than 1, the whole accuracy.
    """

    def __init__(
        self,
        monitor: str,
        inner: Scenario | None = None,
        check: Scenario | None = None,
        images: int = 128,
        draws: int = 3,
        every: int = 1,
        seed: int = 0,
        say: Callable[[str], None] = print,
        drop: Positive = 0.2,
        fall: Positive = 0.05,
    ) -> None:
        for name, value in (("drop", drop), ("fall", fall)):
            if value > 1:  # no accuracy can fall so far, and the guard would never speak
                instead = f"for {value:g} points give {value / 100:g}"
                fix = f"is a share of the images, at most 1: {instead}"
                raise OptionError(name, value, fix)
        self.monitor, self.say, self.drop, self.fall, self.every = monitor, say, drop, fall, every
        own = {"inner": inner} if inner else {}
        if inner and check:
            own["check"] = check
        self.attacks = RobustAccuracy(own, every, images, draws, seed) if inner else None
        self.best: Epoch = {}
        self.flagged: list[str] = []
        #: Whether this epoch's look saw catastrophic overfitting, or a best epoch.
        self.collapsed = self.improved = False
        #: Accuracy of a model that knows nothing.
        self.chance = 0.0
        self._now: Epoch = {}

    def on_validation_epoch_end(self, trainer: pl.Trainer, pl_module: Any) -> None:
        # Not in on_validation_end: averaged weights are in place only until this hook ends.
        epoch = trainer.current_epoch + 1
        self._now = {}
        if (
            trainer.sanity_checking
            or (epoch % self.every and epoch != trainer.max_epochs)
            or self.attacks is None
        ):
            return
        rows = self.attacks.evaluate(trainer, pl_module)["attacks"]
        self._now = {name: float(row["robust_accuracy"]) for name, row in rows.items()}

    def on_validation_end(self, trainer: pl.Trainer, pl_module: Any) -> None:
        epoch = trainer.current_epoch + 1
        self.collapsed = self.improved = False
        if trainer.sanity_checking or (epoch % self.every and epoch != trainer.max_epochs):
            return
        now = dict(self._now)
        if "check" not in now:
            if self.monitor not in trainer.callback_metrics:
                return
            now["check"] = float(trainer.callback_metrics[self.monitor])
        meter = pl_module.meter
        counts = [float(meter.correct), float(meter.images)]
        # Of all processes: each of them judges for itself.
        every = everyone(counts) if trainer.world_size > 1 else [counts]
        correct, images = map(sum, zip(*every, strict=True))
        now["train"] = correct / images if images else float("nan")
        self.chance = 1 / pl_module.num_classes
        logged = self.judge(now, trainer.current_epoch)
        for logger in trainer.loggers:
            logger.log_metrics(logged, step=step_of(trainer))
        if trainer.is_global_zero:
            for line in self.news(logged, now, trainer.current_epoch):
                self.say(line)
                for board in boards(trainer):
                    board.add_text("overfitting", line, global_step=step_of(trainer))

    def judge(self, now: Epoch, epoch: int) -> dict[str, float]:
        """The figures of an epoch to log; remembers the best epoch so far."""
        best = self.best or now
        # Below chance there is nothing to lose.
        knew = best["check"] > self.chance
        fallen = best["check"] - now["check"]
        # 1e-6 allows for rounding: accuracies are multiples of 1 / (images * draws).
        catastrophic = knew and (
            fallen >= self.drop - 1e-6 and now.get("inner", -1.0) >= best.get("inner", 0.0) - 1e-6
        )
        robust = (
            knew
            and not catastrophic
            and fallen >= self.fall - 1e-6
            and now["train"] > best["train"]
        )
        figures = {
            "overfitting/fall": max(fallen, 0.0),
            "overfitting/catastrophic": float(catastrophic),
            "overfitting/robust": float(robust),
        }
        if "inner" in now:
            figures["inner/accuracy"] = now["inner"]
            missed = 1 - now["check"]
            # No attack can find a share of no errors: the inner one is as strong as the check.
            figures["inner/strength"] = (1 - now["inner"]) / missed if missed > 1e-6 else 1.0
        self.collapsed = catastrophic
        self.improved = not self.best or now["check"] > self.best["check"]
        if self.improved:
            self.flagged = []  # what is lost from now on has not been told
            self.best = {**now, "epoch": float(epoch)}
        return figures

    def news(self, logged: dict[str, float], now: Epoch, epoch: int) -> list[str]:
        """Lines about overfitting that began in this epoch: each kind once after a best epoch."""
        begun = [kind for kind in ("catastrophic", "robust") if logged[f"overfitting/{kind}"]]
        new = [kind for kind in begun if kind not in self.flagged]
        self.flagged = [*self.flagged, *new]
        since = (
            f"epoch {int(self.best['epoch']) + 1}: {self.best['check']:.3f} then,"
            f" {now['check']:.3f} in epoch {epoch + 1}"
        )
        lines = {
            "catastrophic": (
                f"catastrophic overfitting: robust accuracy fell since {since}, while accuracy"
                f" under the inner attack is {now.get('inner', 0):.3f}: take more steps or a"
                " smaller epsilon in training, or stop there (--monitor robust/worst_case keeps"
                " the best epoch)"
            ),
            "robust": (
                f"robust overfitting: robust accuracy fell since {since}, while accuracy on the"
                f" adversarial images of training rose to {now['train']:.3f}: stop earlier"
                " (--early_stopping), or average weights"
            ),
        }
        return [lines[kind] for kind in new]

    def trains_against(self, inner: Scenario | None) -> None:
        """From now on, training has this inner attack."""
        if self.attacks is not None and inner is not None:
            self.attacks.scenarios = {**self.attacks.scenarios, "inner": inner}

    def state_dict(self) -> dict[str, Any]:
        return {"best": self.best, "flagged": self.flagged}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.best, self.flagged = state_dict["best"], state_dict["flagged"]
