"""Warnings of a run: Lightning's advice that is no news of ours is left out here, and nowhere else;
ours are said once.
"""

from __future__ import annotations

import logging
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from types import FrameType

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
PACKAGE = __name__.partition(".")[0]
#: Whose lines stand between a caller and a function of ours that has a decorator, or is a module's.
BETWEEN = ("contextlib", "functools", "torch")
#: What was warned of in the run that is going on; None where none is.
_warned: ContextVar[set[str] | None] = ContextVar("warned", default=None)


def warn(message: str, category: type[Warning] = UserWarning) -> None:
    """A warning at the line that called this package from outside; one inside it would tell nobody
    which model or images are meant.
    """
    level, depth = 2, 2  # as `warnings.warn` counts
    after = True  # whether no line but those between was seen since one of ours
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        name = frame.f_globals.get("__name__", "").partition(".")[0]
        if name == PACKAGE:
            after = True
        elif after and name not in BETWEEN:
            level, after = depth, False
        frame, depth = frame.f_back, depth + 1
    warnings.warn(message, category, level)


def warn_once(message: str) -> None:
    """`warn`, once in a run; Python itself forgets what it showed whenever somebody changes the
    filters of warnings.
    """
    said = _warned.get()
    if said is None or message not in said:
        warn(message)
    if said is not None:
        said.add(message)


@contextmanager
def without_advice() -> Iterator[None]:
    """Leave Lightning's advice out while a run lasts, and put everything back after it; what
    `warn_once` says, it says once in the run.
    """
    # A run within a run, of a network that it needs, is a part of it.
    own = _warned.set(set()) if _warned.get() is None else None
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
            if own is not None:
                _warned.reset(own)
