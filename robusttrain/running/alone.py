"""Small trainings of one process, which go on where they were stopped."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.callbacks import ModelCheckpoint

from robusttrain.config.trainer import trainer_from
from robusttrain.core.telling import Say
from robusttrain.data import ImageData

#: One process: what comes out is small, and each process of an evaluation would train its own.
ALONE = {
    **{"devices": 1, "strategy": "auto"},
    **{"num_sanity_val_steps": 0, "limit_val_batches": 0, "enable_model_summary": False},
}


def fit(
    training: pl.LightningModule,
    data: ImageData,
    trainer: Mapping[str, Any],
    unfinished: Path,
    say: Say,
) -> None:
    """Train to the end, from the beginning or from what ``unfinished`` holds.

    Args:
        training: what is trained.
        data: set up, or to be set up by Lightning.
        trainer: ``--trainer.*`` options.
        unfinished: folder for a checkpoint of each epoch; the caller deletes the folder
            (`finished`) once the result is safe.
        say: takes lines.
    """
    last = ModelCheckpoint(
        unfinished, filename="last", save_on_train_epoch_end=True, enable_version_counter=False
    )
    runner = trainer_from({**trainer, **ALONE}, say, logger=False, callbacks=[last])
    resume = unfinished / "last.ckpt"
    runner.fit(
        training, datamodule=data, ckpt_path=resume if resume.is_file() else None, weights_only=True
    )


def finished(unfinished: Path) -> None:
    """Forget what `fit` kept to go on from."""
    shutil.rmtree(unfinished, ignore_errors=True)
