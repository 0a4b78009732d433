"""Checkpoints that exist whole or not at all."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import torch
from pytorch_lightning.plugins.io import TorchCheckpointIO

from robusttrain.storage.files import write_whole


class WholeFiles(TorchCheckpointIO):
    """Writes a checkpoint beside the one before, and only then puts it in its place.

    Lightning's own way passes through the folder for temporary files. Where that lies on another
    file system, its last step is a copy onto the old checkpoint: a full disk or a kill would leave
    neither of the two.
    """

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None
    ) -> None:
        if "://" in str(path):  # no folder of this machine
            super().save_checkpoint(checkpoint, path, storage_options)
            return
        path, content = Path(path), io.BytesIO()
        for left in path.parent.glob(f".{path.name}.*"):  # by a process that was killed
            left.unlink(missing_ok=True)
        torch.save(checkpoint, content)
        write_whole(path, content.getbuffer())
