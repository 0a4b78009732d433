"""Small evaluations, each in a folder of its own."""

import pytest
from small_evaluations import run_small


@pytest.fixture(scope="session")
def evaluated(tmp_path_factory):
    """Runs an evaluation with its report; returns the folder."""
    return lambda **options: run_small(tmp_path_factory.mktemp("evaluated"), **options)


@pytest.fixture(scope="session")
def folder(evaluated):
    """An evaluation with curves."""
    return evaluated(curve=[0.0, 2 / 255, 0.1], curve_effort=[0.25])
