"""The engine on Lightning's Trainer, so that several processes share the work."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import pytorch_lightning as pl
import torch
import torch.distributed
from torch import Tensor, nn

from robusttrain.data import Batch
from robusttrain.evaluation.engine import Engine
from robusttrain.evaluation.records import Records
from robusttrain.evaluation.results import results
from robusttrain.storage.journal import Journal

#: Seconds between two looks at a batch that another process works on.
PAUSE = 0.5


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
    return Records.merged([part for parts, _ in everyone for part in parts]), seconds


class Evaluation(pl.LightningModule):
    """Runs an engine over the test split; afterwards ``results`` holds the results, ``records`` the
    verdicts.

    Args:
        engine: the engine; its target and sources follow this module to the device.
        journal: shows processes that run the same command what the others work on.
        waiting: called, when nothing else is left to do, with the number of batches that other
            processes work on.
    """

    def __init__(
        self,
        engine: Engine,
        journal: Journal | None = None,
        waiting: Callable[[int], None] = lambda count: None,
    ) -> None:
        super().__init__()
        self.engine, self.journal, self.waiting = engine, journal, waiting
        self.parts = nn.ModuleList([engine.target, *engine.sources.values()])
        self.results: dict[str, Any] = {}
        self._records: Records | None = None
        self._mine: list[Records] = []
        self._seconds: dict[str, float] = {}
        self._others: list[Batch] = []

    @property
    def records(self) -> Records:
        """The table of all images, once the run is over."""
        assert self._records is not None
        return self._records

    def test_step(self, batch: Batch, batch_idx: int) -> None:
        if len(batch.images) and not self._run(batch):
            self._others.append(batch)

    def _run(self, batch: Batch) -> bool:
        """Attack a batch, or take another process's finished entries; False while another process
        works on it.
        """
        with self.journal.taken(batch.indices) if self.journal else nullcontext(True) as mine:
            if mine:
                records, seconds = self.engine.run(batch.images, batch.labels, batch.indices)
                self._mine.append(records)
                for name, value in seconds.items():
                    self._seconds[name] = self._seconds.get(name, 0.0) + value
        return mine

    def on_test_epoch_end(self) -> None:
        if self._others:
            self.waiting(len(self._others))
        while self._others:
            # The process that holds a batch finishes it, or dies and leaves it to this one.
            batch = self._others.pop(0)
            if not self._run(batch):
                self._others.append(batch)
                time.sleep(PAUSE)
        self._records, seconds = gather((self._mine, self._seconds))
        self.results = results(self._records, self.engine, seconds)

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.engine.target(images)
        return logits
