"""A process that has done its share of an evaluation does what is left of the others'.

Shares have the same number of images, and yet not the same work: images leave an attack when their
verdict is settled, and a core may have other things to do. So the first process to end takes
batches of the others, from the back. Their owners find them in the journal, and count them.
"""

from __future__ import annotations

import pytorch_lightning as pl
from torch import Tensor

from robusttrain.core.telling import unwatched
from robusttrain.data import Batch, ImageData
from robusttrain.evaluation.engine import Engine
from robusttrain.evaluation.records import CLEAN
from robusttrain.storage.journal import Journal


def help_others(trainer: pl.Trainer, engine: Engine, journal: Journal) -> int:
    """Attack batches that nobody has begun, for other processes; returns how many.

    Processes whose work this journal does not show, since they write to a folder of their own, are
    left alone.

    Args:
        trainer: that runs the evaluation over an `ImageData`.
        engine: attacks the batches; what it finds goes into the journal.
        journal: of all processes.
    """
    data = trainer.datamodule  # type: ignore[attr-defined]
    if not isinstance(data, ImageData):
        return 0
    device, helped, before = trainer.strategy.root_device, 0, engine.advance
    last, most = [CLEAN, *engine.scenarios][-1], int(trainer.num_test_batches[0])
    engine.advance = unwatched  # what is shown is a process's own share
    try:
        for rank in range(1, trainer.world_size):
            split, share = data.test_share((trainer.global_rank + rank) % trainer.world_size)
            batches = [split.subset[positions] for positions in share[:most] if len(positions)]
            if not batches or not _begun(batches[0], journal):
                continue
            for indices in reversed(batches):
                if journal.has(last, indices):
                    continue
                with journal.taken(indices) as mine:
                    if not mine or journal.has(last, indices):
                        continue
                    batch = Batch(*(part.to(device) for part in split.at(indices)))
                    batch = data.on_after_batch_transfer(batch, 0)
                    engine.run(batch.images, batch.labels, batch.indices)
                    helped += 1
    finally:
        engine.advance = before
    return helped


def _begun(indices: Tensor, journal: Journal) -> bool:
    """Whether this journal shows that the owner of a batch works on it, or has done so."""
    if journal.has(CLEAN, indices):
        return True
    with journal.taken(indices) as free:
        return not free
