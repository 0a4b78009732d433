"""Early stopping that goes by what the command says."""

from __future__ import annotations

from typing import Any

from pytorch_lightning.callbacks import EarlyStopping


class Patience(EarlyStopping):
    """Lightning's, with the patience of this run: that of a checkpoint would replace it, and the
    epoch at which an earlier run stopped would pass for one of this run.
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
