"""Validation images for callbacks."""

from __future__ import annotations

import pytorch_lightning as pl

from robusttrain.data import Batch


def my_validation_images(trainer: pl.Trainer, pl_module: pl.LightningModule, count: int) -> Batch:
    """This process's share of ``count`` validation images, on the model's device."""
    batch: Batch = trainer.datamodule.validation_images(count)  # type: ignore[attr-defined]
    share = slice(trainer.global_rank, None, trainer.world_size)
    return Batch(*(part[share].to(pl_module.device) for part in batch))
