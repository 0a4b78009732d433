"""The pace of an epoch: images a second, share of the inner attack, memory; and the norm of the
weights.
"""

from __future__ import annotations

import sys
import time
from typing import Any

import pytorch_lightning as pl
import torch


class Pace(pl.Callback):
    """Logs, for every training epoch, without its validation:

    - ``pace/images_per_second``, over all processes; a replayed image counts each time; -
    ``pace/inner_share``, the share of the time that inner attacks took; - ``pace/memory_gib``, the
    most memory of tensors on an accelerator; on a CPU, the most memory of
      the process so far;
    - ``weights/norm``, the Euclidean norm of all trainable weights;
    - ``inner/train_accuracy``, of the model in training on its own adversarial training images.
    """

    def __init__(self) -> None:
        self.images = 0
        self.started = self.seconds = 0.0

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: Any) -> None:
        pl_module.meter.reset()
        self.images, self.seconds = 0, 0.0
        if pl_module.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(pl_module.device)
        self.started = time.perf_counter()

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self.images += len(batch.images)
        if batch_idx + 1 == trainer.num_training_batches:
            if pl_module.device.type == "cuda":
                torch.cuda.synchronize(pl_module.device)
            self.seconds = time.perf_counter() - self.started

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: Any) -> None:
        # A run that ends within an epoch has no last batch.
        seconds = self.seconds or time.perf_counter() - self.started
        trainable = [
            weight.detach().norm()
            for weight in pl_module.model.parameters()
            if weight.requires_grad
        ]
        meter = pl_module.meter
        figures = {
            "pace/images_per_second": trainer.world_size * self.images / seconds,
            "pace/inner_share": meter.seconds() / seconds,
            "pace/memory_gib": peak_memory(pl_module.device) / 2**30,
            "weights/norm": float(torch.stack(trainable).norm()),
        }
        if meter.images:
            figures["inner/train_accuracy"] = float(meter.correct) / meter.images
        for name, value in figures.items():
            pl_module.log(name, float(value), sync_dist=trainer.world_size > 1)


def peak_memory(device: torch.device) -> int:
    """The most bytes: of tensors on an accelerator since the last reset, or of this process in its
    life.
    """
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    try:
        import resource
    except ImportError:  # not on every system
        return 0
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most if sys.platform == "darwin" else most * 1024
