"""The pace of an epoch: images a second, shares of the inner attack and of loading, memory; and the
norm of the weights.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from typing import Any

import pytorch_lightning as pl
import torch

from robusttrain.core.processor import finish
from robusttrain.core.telling import silence
from robusttrain.data import ImageData
from robusttrain.data.batches import TimedLoader

#: Share of the time that training may wait for batches before a line says what helps.
WORTH_A_LINE = 0.05


class Pace(pl.Callback):
    """Logs, for every training epoch, without its validation:

    - ``pace/images_per_second``, over all processes; a replayed image counts each time;
    - ``pace/inner_share``, the share of the time that inner attacks took;
    - ``pace/loader_share``, the share that training waited for batches;
    - ``pace/augmentation_share``, the share of augmentation and conversion; on an accelerator, of
      giving it this work;
    - ``pace/memory_gib``, the most memory of tensors on an accelerator; on a CPU, the most memory
      of the process so far;
    - ``weights/norm``, the Euclidean norm of all trainable weights;
    - ``inner/train_accuracy``, of the model in training on its own adversarial training images.

    Args:
        say: takes a line, once, where training waits for batches for more than a twentieth of the
            time.
    """

    def __init__(self, say: Callable[[str], None] = silence) -> None:
        self.say = say
        self.images = 0
        self.started = self.seconds = self.validating = 0.0
        #: Seconds of loading and of augmentation before this epoch.
        self.before = (0.0, 0.0)
        self.said = False

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: Any) -> None:
        pl_module.meter.reset()
        self.images, self.seconds, self.validating = 0, 0.0, 0.0
        self.before = _loading(trainer)
        if pl_module.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(pl_module.device)
        self.started = time.perf_counter()

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self.images += len(batch.images)
        if batch_idx + 1 == trainer.num_training_batches:
            finish(pl_module.device)
            # Validations within the epoch are over by now.
            self.seconds = time.perf_counter() - self.started - self.validating

    def on_validation_start(self, trainer: pl.Trainer, pl_module: Any) -> None:
        self.validating -= time.perf_counter()

    def on_validation_end(self, trainer: pl.Trainer, pl_module: Any) -> None:
        self.validating += time.perf_counter()

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: Any) -> None:
        # A run that ends within an epoch has no last batch.
        seconds = self.seconds or time.perf_counter() - self.started - self.validating
        trainable = [
            weight.detach().norm()
            for weight in pl_module.model.parameters()
            if weight.requires_grad
        ]
        meter = pl_module.meter
        waited, augmented = (
            now - then for now, then in zip(_loading(trainer), self.before, strict=True)
        )
        figures = {
            "pace/images_per_second": trainer.world_size * self.images / seconds,
            "pace/inner_share": meter.seconds() / seconds,
            "pace/loader_share": waited / seconds,
            "pace/augmentation_share": augmented / seconds,
            "pace/memory_gib": peak_memory(pl_module.device) / 2**30,
            "weights/norm": float(torch.stack(trainable).norm()),
        }
        if meter.images:
            figures["inner/train_accuracy"] = float(meter.correct) / meter.images
        for name, value in figures.items():
            pl_module.log(name, float(value), sync_dist=trainer.world_size > 1)
        data = trainer.datamodule  # type: ignore[attr-defined]
        if waited > WORTH_A_LINE * seconds and not self.said and isinstance(data, ImageData):
            self.said = True
            self.say(
                f"training waited for batches in {waited / seconds:.0%} of the time:"
                f" {data.faster_loading}"
            )


def _loading(trainer: pl.Trainer) -> tuple[float, float]:
    """Seconds that training has waited for batches so far, and that augmentation has taken; nothing
    where other people's data count neither.
    """
    batches, data = trainer.train_dataloader, trainer.datamodule  # type: ignore[attr-defined]
    return (
        batches.waited if isinstance(batches, TimedLoader) else 0.0,
        data.augmenting if isinstance(data, ImageData) else 0.0,
    )


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
