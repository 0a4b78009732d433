"""Lightning's advice that is no news of a run of ours: left out here, and nowhere else."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

from lightning_fabric.utilities.warnings import PossibleUserWarning

#: By category and beginning of the message; whatever else is warned of is shown.
UNIMPORTANT: tuple[tuple[type[Warning], str], ...] = (
    # Images lie in memory, or are decoded by the workers that --data.workers asks for.
    (PossibleUserWarning, r"The '\w+' does not have many workers"),
    # Every figure is one of an epoch, and short epochs have theirs as well.
    (PossibleUserWarning, r"The number of training batches \(\d+\) is smaller than the logging"),
    # f_b, inside a defense, stays as it is.
    (PossibleUserWarning, r"Found \d+ module\(s\) in eval mode at the start of training"),
    # A run that goes on writes where it wrote before.
    (UserWarning, r"Checkpoint directory .* exists and is not empty"),
    # h is trained without validation.
    (UserWarning, r"You passed in a `val_dataloader` but have no `validation_step`"),
    # Labels are checked by the module, whatever the data do.
    (UserWarning, r"You have overridden `\w+` in `LightningModule` but have passed in a"),
    # Lightning's own call of torch.
    (Warning, r"`isinstance\(treespec, LeafSpec\)` is deprecated"),
)
#: Loggers whose lines are about Lightning's own products and habits.
LOGGERS = ("pytorch_lightning", "lightning_fabric")


@contextmanager
def without_advice() -> Iterator[None]:
    """Leave Lightning's advice out while a run lasts, and put everything back after it."""
    loggers = [logging.getLogger(name) for name in LOGGERS]
    levels = [logger.level for logger in loggers]
    with warnings.catch_warnings():
        for category, message in UNIMPORTANT:
            warnings.filterwarnings("ignore", message, category)
        for logger in loggers:
            logger.setLevel(logging.WARNING)
        try:
            yield
        finally:
            for logger, level in zip(loggers, levels, strict=True):
                logger.setLevel(level)
