"""What an epoch took: images a second, share of the inner attack, memory; and the norm of the
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

    - ``pace/images_per_second``, over all processes; a replayed image counts each time;
    - ``pace/inner_share``, the share of that time which inner attacks took;
    - ``pace/memory_gib``: the most that an accelerator held; on a CPU, the most that the process
      has held so far;
    - ``weights/norm``, the Euclidean norm of all trainable weights;
    - ``inner/train_accuracy``, of the model in training on the adversarial images that it is
      trained on.
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
        found = {
            "pace/images_per_second": trainer.world_size * self.images / seconds,
            "pace/inner_share": meter.seconds() / seconds,
            "pace/memory_gib": peak_memory(pl_module.device) / 2**30,
            "weights/norm": float(torch.stack(trainable).norm()),
        }
        if meter.images:
            found["inner/train_accuracy"] = float(meter.correct) / meter.images
        for name, value in found.items():
            pl_module.log(name, float(value), sync_dist=trainer.world_size > 1)


def peak_memory(device: torch.device) -> int:
    """Bytes: the most that tensors took on an accelerator since the last reset, or this process in
    its life.
    """
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    try:
        import resource
    except ImportError:  # not on every system
        return 0
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most if sys.platform == "darwin" else most * 1024
