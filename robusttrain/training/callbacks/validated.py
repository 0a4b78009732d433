"""When the figures of a run were measured: a run may end between two validations."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TypeVar

import pytorch_lightning as pl

from robusttrain.training.callbacks.robust_accuracy import RobustAccuracy, epochs_done

Figure = TypeVar("Figure")


class Validated(pl.Callback):
    """Remembers after which epoch validation last ran."""

    def __init__(self) -> None:
        #: How many epochs were done; 0: no validation yet, or one inside the first.
        self.epoch = 0

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if not trainer.sanity_checking:
            self.epoch = epochs_done(trainer)


def of_last_epoch(
    metrics: Mapping[str, Figure], callbacks: Sequence[pl.Callback], epochs: int
) -> dict[str, Figure]:
    """The figures without those that were measured in an earlier epoch, which Lightning keeps: a
    run may have ended between two of the epochs with a validation, or with attacks.
    """
    old = tuple(
        {
            "robust/" if isinstance(each, RobustAccuracy) else "val/"
            for each in callbacks
            if (isinstance(each, RobustAccuracy) and each.looked != epochs)
            or (isinstance(each, Validated) and each.epoch != epochs)
        }
    )
    return {key: value for key, value in metrics.items() if not key.startswith(old)}
