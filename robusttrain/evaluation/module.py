"""The engine on Lightning's Trainer, so that several processes share the work."""

from __future__ import annotations

from typing import Any

import pytorch_lightning as pl
import torch
import torch.distributed
from torch import Tensor, nn

from robusttrain.data import Batch
from robusttrain.evaluation.engine import Engine, Records
from robusttrain.evaluation.results import merge, results


def gather(mine: tuple[list[Records], dict[str, float]]) -> tuple[Records, dict[str, float]]:
    """Records and seconds of all processes together."""
    everyone = [mine]
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        everyone = [mine] * torch.distributed.get_world_size()
        torch.distributed.all_gather_object(everyone, mine)
    seconds: dict[str, float] = {}
    for _, spent in everyone:
        for name, value in spent.items():
            seconds[name] = seconds.get(name, 0.0) + value
    return merge([part for parts, _ in everyone for part in parts]), seconds


class Evaluation(pl.LightningModule):
    """Runs an engine over the test split; afterwards ``found`` holds the results, ``records`` the verdicts.

    Args:
        engine: the engine; its target and sources follow this module to the device.
    """

    def __init__(self, engine: Engine) -> None:
        super().__init__()
        self.engine = engine
        self.parts = nn.ModuleList([engine.target, *engine.sources.values()])
        self.found: dict[str, Any] = {}
        self.records: Records = {}
        self._mine: list[Records] = []
        self._seconds: dict[str, float] = {}

    def test_step(self, batch: Batch, batch_idx: int) -> None:
        if not len(batch.images):
            return
        records, seconds = self.engine.run(batch.images, batch.labels, batch.indices)
        self._mine.append(records)
        for name, value in seconds.items():
            self._seconds[name] = self._seconds.get(name, 0.0) + value

    def on_test_epoch_end(self) -> None:
        self.records, seconds = gather((self._mine, self._seconds))
        self.found = results(self.records, self.engine, seconds)

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.engine.target(images)
        return logits
