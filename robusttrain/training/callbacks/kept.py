"""Checkpoints whose folder may move between two parts of a run."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

from pytorch_lightning.callbacks import ModelCheckpoint

from robusttrain.core.advice import warn_once


class Kept(ModelCheckpoint):
    """Lightning's, that knows its files again where their folder was moved, or is mounted under
    another name. Lightning's own forgets the best score with the folder's path, and the next epoch,
    however bad, takes the place of ``best.ckpt``.
    """

    @property
    def state_key(self) -> str:
        # The parent's: checkpoints of before this class hold the state under it.
        return super().state_key.replace(type(self).__qualname__, ModelCheckpoint.__qualname__, 1)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        best = Path(str(state_dict.get("best_model_path") or ""))
        folder = Path(str(self.dirpath))
        if state_dict.get("dirpath") == self.dirpath:
            super().load_state_dict(state_dict)
        elif best.name and (folder / best.name).is_file():
            super().load_state_dict(self._moved(state_dict, folder))
        else:
            if self.monitor is not None and best.name:
                warn_once(
                    f"{best.name}: the best of the epochs from here on; the best one before is not"
                    f" in {folder}, and was kept as {best}"
                )
            with warnings.catch_warnings(action="ignore"):  # which says so in Lightning's words
                super().load_state_dict(state_dict)

    def _moved(self, state: dict[str, Any], folder: Path) -> dict[str, Any]:
        """The state with all its files in ``folder``."""

        def here(path: str) -> str:
            return str(folder / Path(path).name) if path else path

        paths = ("best_model_path", "kth_best_model_path", "last_model_path")
        return {
            **state,
            "dirpath": self.dirpath,
            **{name: here(state[name]) for name in paths if name in state},
            "best_k_models": {here(path): to for path, to in state["best_k_models"].items()},
        }
