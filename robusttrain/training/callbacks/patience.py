"""Early stopping that goes by what the command says."""

from __future__ import annotations

from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.callbacks import EarlyStopping


class Patience(EarlyStopping):
    """Lightning's, with the patience of this run: that of a checkpoint would replace it, and the
    epoch at which an earlier run stopped would pass for one of this run.

    A run that goes on from where this patience was at its end trains no further epoch: Lightning's
    would train one more each time, and a run that was killed after its last epoch would not end as
    one that was not.
    """

    @property
    def state_key(self) -> str:
        # The parent's: checkpoints of before this class hold the state under it.
        told = {"monitor": self.monitor, "mode": self.mode}
        return f"EarlyStopping{told}"

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        own = self.patience, self.stopped_epoch, self.stopping_reason
        super().load_state_dict(state_dict)
        self.patience, self.stopped_epoch, self.stopping_reason = own
        self.stopping_reason_message = None

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if self.wait_count >= self.patience:
            trainer.should_stop, self.stopped_epoch = True, trainer.current_epoch
