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
    """Where there is an accelerator, the tests run on that one, and none is pretended."""
    if REAL:
        there = pytest.mark.skip(reason="an accelerator is here: none can be pretended beside it")
        for item in items:
            if HERE in Path(item.path).parents and Path(item.path).name in OF_ITSELF:
                item.add_marker(there)
