"""Registers the pretend device while tests are collected, before any backward pass."""

from pathlib import Path

import pretend_device
import pytest

HERE = Path(__file__).parent


@pytest.fixture(autouse=True)
def shown(monkeypatch):
    """The device is there for these tests, and for no others."""
    monkeypatch.setattr(pretend_device.BACKEND, "shown", True)


def pytest_collection_modifyitems(items):
    """Where there is an accelerator, none is pretended."""
    if not pretend_device.AVAILABLE:
        there = pytest.mark.skip(reason="an accelerator is here: none can be pretended beside it")
        for item in items:
            if HERE in Path(item.path).parents:
                item.add_marker(there)
