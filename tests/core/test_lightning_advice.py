"""Lightning's advice is left out, and nothing else is."""

import logging
import warnings

import pytest
from lightning_fabric.utilities.warnings import PossibleUserWarning

from robusttrain.core.advice import LOGGERS, without_advice


def shown(message, category):
    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("always")
        with without_advice():
            warnings.warn(message, category, stacklevel=1)
    return len(found)


@pytest.mark.parametrize(
    ("message", "category"),
    [
        ("The 'train_dataloader' does not have many workers which may be", PossibleUserWarning),
        (
            "The number of training batches (2) is smaller than the logging interval",
            PossibleUserWarning,
        ),
        ("Checkpoint directory a/b exists and is not empty.", UserWarning),
    ],
)
def test_what_is_named_is_left_out(message, category):
    assert shown(message, category) == 0


@pytest.mark.parametrize(
    ("message", "category"),
    [
        ("The 'train_dataloader' has no images", PossibleUserWarning),
        ("attacks ask: it does not have many workers", UserWarning),
        ("Checkpoint directory a/b exists and is not empty.", DeprecationWarning),
        ("something of the user's own", UserWarning),
    ],
)
def test_everything_else_is_shown(message, category):
    assert shown(message, category) == 1


def test_all_is_as_before_after_it():
    logger = logging.getLogger(LOGGERS[0])
    before, filters = logger.level, [*warnings.filters]
    within = []

    @without_advice()
    def broken():
        within.append(logger.level)
        raise ValueError("in the middle")

    with pytest.raises(ValueError, match="in the middle"):
        broken()
    assert within == [logging.WARNING]
    assert logger.level == before
    assert [*warnings.filters] == filters
