"""Whether a training takes gradients of compiled networks (``train.py --compile``)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from robusttrain.data import Batch
from robusttrain.evaluation.compiling import PLAIN, Choice, Work, choose_mode, kept
from robusttrain.models.compiling import SMALLEST, Mode, asked_mode
from robusttrain.training.module import RobustTraining


def chosen_for(
    asked: str, training: RobustTraining, batch: Batch, trainer: Any, steps: int
) -> Choice:
    """How training steps take gradients; ``training`` does so from then on.

    Args:
        asked: "auto", "off" or "on"; or the mode in which a run began that goes on.
        training: on the trainer's device; its weights stay as they are, its statistics too.
        batch: a training batch, on that device.
        trainer: Lightning's, not started; its precision counts.
        steps: that the run will take.
    """
    if asked == "off":
        return PLAIN
    if len(batch.images) < SMALLEST:
        fewer = f"batches of fewer than {SMALLEST} images are never compiled"
        choice = Choice("off", fewer)
    else:
        device, work = batch.images.device, _step(training, batch, trainer, steps)
        began: Mode = "reduce-overhead" if asked == "reduce-overhead" else "default"
        choice = (
            choose_mode(asked, [work], device)
            if asked in ("auto", "on")
            else kept(began, [work], device, "this run began so")
        )
    training.zero_grad()
    training.compiled_as(choice.active)
    return choice


def _step(training: RobustTraining, batch: Batch, trainer: Any, steps: int) -> Work:
    """The gradients of the weights in a training step, all that the step is made of."""
    training.train()
    weights = [weight for weight in training.parameters() if weight.requires_grad]
    before = [(buffer, buffer.clone()) for buffer in training.buffers()]

    def gradient(count: int) -> Tensor:
        mode = asked_mode()
        if training.compiled != mode:
            training.compiled_as(mode)
        part = Batch(*(values[:count] for values in batch))
        with trainer.precision_plugin.train_step_context():
            losses, _ = training.losses(part, 0, 0)
            loss = losses.mean()
        training.zero_grad()
        loss.backward()
        with torch.no_grad():  # the next one starts from the same statistics
            for buffer, value in before:
                buffer.copy_(value)
        slopes = [weight.grad.flatten() for weight in weights if weight.grad is not None]
        return torch.cat(slopes)[None].clone()

    return Work(gradient, len(batch.images), steps)
