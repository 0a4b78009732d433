"""The inner maximisation of adversarial training: an attack, batch norm's mode under it, and its
time.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from contextvars import ContextVar
from itertools import chain
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from robusttrain.attacks import Attack, Source
from robusttrain.attacks.prepare import following, may_follow
from robusttrain.core.rng import Rng
from robusttrain.models import fast_twin
from robusttrain.models.compiling import normalised_together
from robusttrain.models.defended import DefendedClassifier

BatchNormMode = Literal["eval", "train"]
BATCH_NORM_MODES = ("eval", "train")


class Meter:
    """Time and success of inner attacks since the last `reset`.

    Only `seconds` waits for an accelerator.

    Attributes:
        images: adversarial images that were judged.
        correct: how many of these images the model got right, in training mode.
    """

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        """Forget everything."""
        self.images = 0
        self.correct: Tensor | int = 0
        self._seconds = 0.0
        self._events: list[tuple[Any, Any]] = []

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Within this context, inner attacks report to this meter."""
        token = _listener.set(self)
        try:
            yield
        finally:
            _listener.reset(token)

    @contextmanager
    def timing(self, device: torch.device) -> Iterator[None]:
        """Count the time spent inside as the inner attack's."""
        if device.type == "cuda":
            start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            start.record()
            yield
            end.record()
            self._events.append((start, end))
        else:
            begun = time.perf_counter()
            yield
            self._seconds += time.perf_counter() - begun

    def seconds(self) -> float:
        """Seconds that inner attacks took; waits for an accelerator."""
        for start, end in self._events:
            end.synchronize()
            self._seconds += start.elapsed_time(end) / 1000
        self._events.clear()
        return self._seconds


_listener: ContextVar[Meter | None] = ContextVar("listener", default=None)


_dtype: ContextVar[torch.dtype | None] = ContextVar("dtype", default=None)


@contextmanager
def crafting_in(dtype: torch.dtype | None) -> Iterator[None]:
    """Within this context, inner attacks compute in this type; None: in that of training."""
    token = _dtype.set(dtype)
    try:
        yield
    finally:
        _dtype.reset(token)


def judge(logits: Tensor, labels: Tensor) -> None:
    """Report to the listening meter, if any, how many adversarial images are right: logits (B, K),
    labels (B,) or (B, K).
    """
    meter = _listener.get()
    if meter is not None:
        meter.images += len(logits)
        meter.correct = meter.correct + (logits.detach().argmax(dim=1) == hard(labels)).sum()


def hard(labels: Tensor) -> Tensor:
    """(B,) int64: the class of each image; of mixed labels (B, K), the one with the largest
    share.
    """
    return labels.argmax(dim=1) if labels.dim() > 1 else labels


def brought(network: nn.Module, device: torch.device) -> nn.Module:
    """The network itself, moved to a device if not all of it is there; asked in every batch."""
    tensors = chain(network.parameters(), network.buffers())
    return network if all(each.device == device for each in tensors) else network.to(device)


@contextmanager
def batch_statistics(model: nn.Module) -> Iterator[None]:
    """Let batch norm layers that are now in training mode stay in it under an attack, although the
    attack sets evaluation mode.

    Frozen layers, f_b's among them, stay frozen. As in the released code of fast and free
    adversarial training, the running statistics follow the images of the attack's steps, too.
    """

    def wake(layer: nn.Module, _: Any) -> None:
        if may_follow():  # and not in a search of the defense's own
            layer.training = True

    awake = [layer for layer in model.modules() if isinstance(layer, _BatchNorm) and layer.training]
    handles = [layer.register_forward_pre_hook(wake) for layer in awake]
    try:
        with following(awake), normalised_together():
            yield
    finally:
        for handle in handles:
            handle.remove()


def craft(
    model: DefendedClassifier,
    attack: Attack,
    source: Source,
    images: Tensor,
    labels: Tensor,
    rng: Rng,
    batch_norm: BatchNormMode = "eval",
) -> Tensor:
    """Adversarial images (B, C, H, W) in [0, 1], detached, for the model as it is now.

    Args:
        model: the defended classifier in training.
        attack: the inner maximisation.
        source: what the attack differentiates.
        images: (B, C, H, W), pixel values in [0, 1].
        labels: (B,) int64, or (B, K) shares of mixed images, of which the attack takes the class
            with the largest share.
        rng: streams of the images, (B,).
        batch_norm: "eval" normalises with running statistics and changes nothing in them (PGD
            adversarial training as TRADES, MART and this framework do it); "train" with the
            batch's own statistics (see `batch_statistics`).
    """
    meter = _listener.get() or Meter()
    with meter.timing(images.device):
        kind, dtype = images.device.type, _dtype.get()
        if batch_norm == "train":
            # No copy here, whose type could be another: autocast, unless the trainer's is meant.
            casting = (
                nullcontext()
                if dtype is None
                else torch.autocast(kind, torch.bfloat16, enabled=dtype == torch.bfloat16)
            )
            with batch_statistics(model), casting:
                return attack(
                    brought(source(model), images.device),
                    *(images, hard(labels), rng.fold("inner attack")),
                )
        # In evaluation mode batch norm folds into convolutions: a copy with the current weights
        # saves more time than it costs. By default its type is that of autocast, which would
        # otherwise cast every weight again in every pass.
        own = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else torch.float32
        fast = fast_twin(model.classifier, dtype or own)
        attacked = model if fast is model.classifier else DefendedClassifier(model.defense, fast)
        # Weights in no other type than the model's: autocast, unless float32 is asked for.
        cast = attacked is model and dtype != torch.float32 and torch.is_autocast_enabled(kind)
        with torch.autocast(kind, enabled=cast):
            return attack(
                brought(source(attacked), images.device),
                *(images, hard(labels), rng.fold("inner attack")),
            )
