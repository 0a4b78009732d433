"""Registers the pretend device while tests are collected, before any backward pass."""

from pathlib import Path

import pretend_device
import pytest
import torch
from waits import REAL

HERE = Path(__file__).parent
#: Tests of the pretend device itself.
OF_ITSELF = ("test_pretend_device.py", "test_generators_on_device.py")


@pytest.fixture(autouse=True)
def shown(monkeypatch):
    """The device is there for these tests, and for no others; it computes float32 in full."""
    if REAL:
        monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    monkeypatch.setattr(pretend_device.BACKEND, "shown", True)


def pytest_collection_modifyitems(items):
    """Where there is an accelerator, none is pretended. On a CUDA device the tests run all the
    same: torch counts there how often the host waits.
    """
    if REAL:
        there = pytest.mark.skip(reason="an accelerator is here: none can be pretended beside it")
        every = pretend_device.DEVICE.type != "cuda"
        for item in items:
            here = HERE in Path(item.path).parents
            if here and (every or Path(item.path).name in OF_ITSELF):
                item.add_marker(there)
