"""Averaged weights: a moving average of steps, and the mean of epochs (SWA)."""

from __future__ import annotations

from itertools import chain
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import WeightAveraging
from torch import Tensor
from torch.nn.modules.batchnorm import _BatchNorm
from torch.optim.swa_utils import get_ema_multi_avg_fn

from robusttrain.core.checked import Count, Whole, checked
from robusttrain.core.rng import Rng
from robusttrain.data import Batch
from robusttrain.models.copying import deep_copy


class _Averaging(WeightAveraging):
    """Lightning's, for any network that can be trained: also where torch refuses to copy it as it
    is (`deep_copy`), where buffers appear or change their shape or type in a pass, and where two
    tensors share their memory.
    """

    #: The modules of the averaged model and of the one that is trained.
    _modules: tuple[Any, ...] | list[tuple[Any, Any]] = ()

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        self._modules = ()
        copied: Any = deep_copy(pl_module) if stage == "fit" else pl_module
        super().setup(trainer, copied, stage)

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        # The model took its memory format after `setup`. Tensors that lie differently would be
        # averaged one by one.
        for mine, theirs in self._pairs(pl_module):
            if mine.stride() != theirs.stride():
                alike = torch.empty_like(theirs, dtype=mine.dtype, device=mine.device)
                mine.data = alike.copy_(mine.detach())

    def on_train_batch_end(self, trainer: Any, pl_module: Any, *arguments: Any) -> None:
        self._follow_buffers(pl_module)
        super().on_train_batch_end(trainer, pl_module, *arguments)

    def _pairs(self, pl_module: pl.LightningModule) -> list[tuple[Tensor, Tensor]]:
        """Averaged and current weights and buffers."""
        assert self._average_model is not None
        mine, theirs = (
            chain(module.parameters(), module.buffers())
            for module in (self._average_model.module, pl_module)
        )
        return [*zip(mine, theirs, strict=True)]

    def _follow_buffers(self, pl_module: pl.LightningModule) -> None:
        """Let averaged buffers begin anew where those of the model are others by now."""
        assert self._average_model is not None
        if not self._modules:  # walking through a network in every step would take longer than this
            both = self._average_model.module.modules(), pl_module.modules()
            self._modules = [*zip(*both, strict=True)]
        for mine, theirs in self._modules:
            for name, now in theirs._buffers.items():
                if _kind(mine._buffers.get(name)) != _kind(now):
                    with torch.inference_mode(False):
                        mine._buffers[name] = None if now is None else now.detach().clone()
                    mine._non_persistent_buffers_set.update(theirs._non_persistent_buffers_set)

    def _swap_models(self, pl_module: pl.LightningModule) -> None:
        # All are read before one is written: swapped one by one, two that share their memory would
        # be swapped back.
        self._follow_buffers(pl_module)
        pairs = [(mine.data, theirs.data) for mine, theirs in self._pairs(pl_module)]
        held = [theirs.clone() for _, theirs in pairs]
        for mine, theirs in pairs:
            theirs.copy_(mine)
        for (mine, _), values in zip(pairs, held, strict=True):
            mine.copy_(values)

    def _copy_average_to_current(self, pl_module: pl.LightningModule) -> None:
        self._follow_buffers(pl_module)
        super()._copy_average_to_current(pl_module)


def _kind(buffer: Tensor | None) -> tuple[Any, ...]:
    return () if buffer is None else (buffer.shape, buffer.dtype)


class EMA(_Averaging):
    """An exponential moving average of weights and buffers, validated and saved in their place.

    Lightning's own callback of this kind averages one tensor at a time, which takes a GPU longer
    than the step that it averages; this one averages all of them at once.

    Args:
        decay: what remains of the average in a step.
    """

    def __init__(self, decay: float) -> None:
        step = get_ema_multi_avg_fn(decay)

        def each_memory_once(averaged: list[Tensor], current: list[Tensor], steps: Any) -> None:
            if len({mine.data_ptr() for mine in averaged}) == len(averaged):
                return step(averaged, current, steps)
            once = {
                (mine.data_ptr() or id(mine), mine.shape, mine.stride()): (mine, theirs)
                for mine, theirs in zip(averaged, current, strict=True)
            }
            pairs = [*once.values()]
            return step([mine for mine, _ in pairs], [theirs for _, theirs in pairs], steps)

        super().__init__(multi_avg_fn=each_memory_once)

    @property
    def state_key(self) -> str:
        """As in checkpoints that Lightning's callback wrote."""
        return "EMAWeightAveraging"


@checked
class SWA(_Averaging):
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
        self._follow_buffers(pl_module)
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
