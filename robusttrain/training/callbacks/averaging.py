"""Averaged weights: a moving average of steps, and the mean of epochs (SWA)."""

from __future__ import annotations

from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import WeightAveraging
from torch.nn.modules.batchnorm import _BatchNorm
from torch.optim.swa_utils import get_ema_multi_avg_fn

from robusttrain.core.checked import Count, Whole, checked
from robusttrain.core.rng import Rng
from robusttrain.data import Batch


class EMA(WeightAveraging):
    """An exponential moving average of weights and buffers, validated and saved in their place.

    Lightning's own callback of this kind averages one tensor at a time, which takes a GPU longer
    than the step that it averages; this one averages all of them at once.

    Args:
        decay: what remains of the average in a step.
    """

    def __init__(self, decay: float) -> None:
        super().__init__(multi_avg_fn=get_ema_multi_avg_fn(decay))

    @property
    def state_key(self) -> str:
        """As in checkpoints that Lightning's callback wrote."""
        return "EMAWeightAveraging"


@checked
class SWA(WeightAveraging):
    """The mean of the weights at the ends of epochs (Izmailov et al. 2018), validated and saved in
    their place.

    Running statistics belong to the weights that they were measured with. So those of the mean are
    measured anew after each epoch, on images of the objective's kind: if it trains on adversarial
    images, they are crafted against the averaged model. Before ``start``, the averaged weights are
    the current ones.

    Args:
        start: the first epoch, counted from 0, whose weights count.
        batches: training batches that the statistics are measured on.
    """

    def __init__(self, start: Whole, batches: Count = 20) -> None:
        super().__init__(use_buffers=False)
        self.start, self.batches = start, batches
        #: The epoch whose end was seen last.
        self._ended = -1

    def should_update(self, step_idx: int | None = None, epoch_idx: int | None = None) -> bool:
        return False  # on_train_batch_end updates

    def on_train_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,
        batch: Batch,
        batch_idx: int,
    ) -> None:
        # Not in on_train_epoch_end, which comes after validation: validation must see these
        # weights.
        if batch_idx + 1 == trainer.num_training_batches:
            self._take(trainer, pl_module)

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        super().on_train_epoch_end(trainer, pl_module)
        if self._ended != trainer.current_epoch:  # steps or time ended the run within an epoch
            self._take(trainer, pl_module)

    def _take(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Let the weights as they are now count."""
        self._ended = trainer.current_epoch
        assert self._average_model is not None
        if trainer.current_epoch <= self.start:
            self._average_model.n_averaged.zero_()  # the update that follows copies
        self._average_model.update_parameters(pl_module)
        if int(self._average_model.n_averaged) > 1:
            self.measure(trainer, pl_module)

    def measure(self, trainer: pl.Trainer, pl_module: Any) -> None:
        """Replace the averaged model's batch-norm statistics by those of training batches."""
        assert self._average_model is not None
        averaged: Any = self._average_model.module
        for ours, theirs in zip(averaged.model.modules(), pl_module.model.modules(), strict=True):
            ours.training = theirs.training
        layers = [
            layer
            for layer in averaged.model.modules()
            if isinstance(layer, _BatchNorm) and layer.training
        ]
        if not layers:
            return
        objective, model = pl_module.objective.at(trainer.current_epoch), averaged.model
        # All images are crafted before the first statistic is reset: crafting needs a working
        # model.
        ready = []
        for batch in self._training_batches(trainer, pl_module):
            rng = (
                Rng.for_images(pl_module.seed, batch.indices)
                .fold("statistics")
                .fold(trainer.current_epoch)
            )
            ready.append((batch, objective.craft(model, batch.images, batch.labels, rng), rng))
        momenta = [layer.momentum for layer in layers]
        devices = [pl_module.device.index] if pl_module.device.type == "cuda" else []
        with torch.no_grad(), torch.random.fork_rng(devices):
            for layer in layers:
                layer.reset_running_stats()
                layer.momentum = None  # type: ignore[assignment]  # torch: the mean over all batches
            for batch, crafted, rng in ready:
                objective.losses(model, batch.images, crafted, batch.labels, rng)
        for layer, momentum in zip(layers, momenta, strict=True):
            layer.momentum = momentum
            for name in ("running_mean", "running_var"):
                layer.get_buffer(name).copy_(
                    trainer.strategy.reduce(layer.get_buffer(name).clone(), reduce_op="mean")
                )

    def _training_batches(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> list[Batch]:
        """Some batches of the epoch, augmented, on the model's device."""
        data: Any = trainer.datamodule  # type: ignore[attr-defined]
        loader, batches = data.train_dataloader(), []
        loader.sampler.set_epoch(trainer.current_epoch)
        step = data.replays  # a replayed batch adds nothing
        for number, batch in enumerate(loader):
            if number % step == 0:
                on_device = Batch(*(part.to(pl_module.device) for part in batch))
                batches.append(data.on_after_batch_transfer(on_device, 0))
            if len(batches) == self.batches:
                break
        return batches
