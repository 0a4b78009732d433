"""Takes catastrophic overfitting back: the best epoch's weights, and a stronger inner attack."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import EarlyStopping, ModelCheckpoint, WeightAveraging
from torch import Tensor

from robusttrain.training.callbacks.overfitting import Overfitting


class Undo(pl.Callback):
    """Where the guard sees catastrophic overfitting, training goes on from the weights of its best
    epoch so far, with twice the steps of the inner attack (`TrainingObjective.strengthened`).

    A network that has learned its single step does not find back by itself (Andriushchenko &
    Flammarion 2020, section 3). Averaged weights start anew from there, and so does the optimizer's
    momentum; the schedule goes on. It happens once a run, since a second collapse under several
    steps is something else.

    The checkpoints of the epoch that collapsed hold what was validated then; the next epoch begins
    with the weights of the best one. What a checkpoint by another figure than robust accuracy took
    for the best may be the collapsed network (clean accuracy rises), so that search starts anew,
    and so does the patience of early stopping by such a figure.

    Args:
        guard: what looks out for overfitting; it stands before this callback.
        say: takes a line for the log.
    """

    def __init__(self, guard: Overfitting, say: Callable[[str], None] = print) -> None:
        self.guard, self.say = guard, say
        #: Weights of the best epoch so far, on the CPU; after an undo, none.
        self.best: dict[str, Tensor] = {}
        #: Whether an epoch has collapsed, and the next one begins with the best weights.
        self.due = self.done = False

    def on_fit_start(self, trainer: pl.Trainer, pl_module: Any) -> None:
        if self.done:  # in an earlier part of the run
            pl_module.objective = pl_module.objective.strengthened()
            self.guard.trains_against(pl_module.objective.inner())

    def on_validation_epoch_end(self, trainer: pl.Trainer, pl_module: Any) -> None:
        # Averaged weights, which the guard judges, are in place only until this hook ends.
        if not trainer.sanity_checking and not self.done:
            self._seen = _copied(pl_module.model)

    def on_validation_end(self, trainer: pl.Trainer, pl_module: Any) -> None:
        if trainer.sanity_checking or self.done:
            return
        if self.guard.improved:
            self.best = self._seen
        self.due = self.guard.collapsed and bool(self.best)

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: Any) -> None:
        stronger = pl_module.objective.strengthened() if self.due else None
        self.due = False
        if stronger is None:
            return
        pl_module.model.load_state_dict(self.best)
        for callback in trainer.callbacks:  # type: ignore[attr-defined]
            if isinstance(callback, WeightAveraging) and callback._average_model is not None:
                averaged: Any = callback._average_model.module
                averaged.model.load_state_dict(self.best)
                callback._average_model.n_averaged.fill_(1)  # a mean counts them as one
            if not str(getattr(callback, "monitor", None)).startswith("val/"):
                continue
            if isinstance(callback, ModelCheckpoint):
                callback.best_k_models.clear()
                callback.best_model_score = None
            if isinstance(callback, EarlyStopping):
                worst = torch.inf if callback.mode == "min" else -torch.inf
                callback.best_score, callback.wait_count = torch.tensor(worst), 0
        for optimizer in trainer.optimizers:
            optimizer.state.clear()
        pl_module.objective, self.best, self.done = stronger, {}, True
        self.guard.trains_against(stronger.inner())
        if trainer.is_global_zero:
            epoch = int(self.guard.best["epoch"]) + 1  # counted as the log does
            self.say(
                f"undone: training goes on from the weights of epoch {epoch}"
                f" with {stronger.cost().inner} gradient evaluations of the inner attack, and takes"
                " longer from here"
            )

    def state_dict(self) -> dict[str, Any]:
        return {"best": self.best, "done": self.done, "due": self.due}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.best, self.done = state_dict["best"], state_dict["done"]
        self.due = state_dict.get("due", False)  # runs of before took it back at once


def _copied(model: torch.nn.Module) -> dict[str, Tensor]:
    return {name: value.detach().cpu().clone() for name, value in model.state_dict().items()}
