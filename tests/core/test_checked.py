"""Arguments are held against the limits that their types name."""

from __future__ import annotations

import inspect
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import numpy as np
import pytest
import torch
from jsonargparse import ArgumentParser
from torch import nn

from robusttrain.core.checked import BelowOne, Count, NonNegative, Positive, Share, Whole, checked
from robusttrain.core.errors import OptionError
from robusttrain.models import MLP


@checked
@dataclass(frozen=True)
class Parts:
    """Of an attack.

    Args:
        steps: how many.
    """

    steps: Count = 3
    queries: Whole = 0
    size: Positive | None = None
    weight: NonNegative = 0.0
    share: Share = 0.5
    decay: BelowOne = 0.9
    keep: Literal["first", "best"] = "first"
    later: Later | None = None
    network: MLP | nn.Module = field(default_factory=nn.Identity)
    name: str = "mine"
    anything: Any = None


class Later:
    """Named before it is there."""


@checked
class Layer(nn.Module):
    def __init__(self, width: Count, *, scale: Positive = 1.0) -> None:
        super().__init__()
        self.width = width


@pytest.mark.parametrize(
    ("values", "fix"),
    [
        ({"steps": 0}, "steps = 0: must be at least 1"),
        ({"queries": -1}, "queries = -1: must be at least 0"),
        ({"size": 0.0}, "size = 0.0: must be greater than 0"),
        ({"size": float("nan")}, "size = nan: must be greater than 0"),
        ({"weight": float("inf")}, "weight = inf: must be at least 0, and finite"),
        ({"share": 1.1}, r"share = 1.1: must lie between 0 and 1"),
        ({"decay": 1.0}, "decay = 1.0: must be at least 0 and below 1"),
        ({"keep": "worst"}, "keep = 'worst': must be one of first, best"),
        ({"steps": None}, "steps = None: must be a whole number"),
        ({"weight": None}, "weight = None: must be a number"),
        ({"keep": None}, "keep = None: must be one of first, best"),
        ({"network": None}, "network = None: must be an MLP or a Module"),
        ({"name": None}, "name = None: must be text"),
    ],
)
def test_what_lies_outside_is_refused(values, fix):
    with pytest.raises(OptionError, match=f"^{fix}$"):
        Parts(**values)
    with pytest.raises(OptionError, match=f"^{fix}$"):
        replace(Parts(), **values)


@pytest.mark.parametrize("value", ["8/255", [1]])
def test_what_is_no_number_is_refused_in_words(value):
    with pytest.raises(OptionError, match="size = .* must be a number"):
        Parts(size=value)


def test_what_lies_inside_and_none_pass():
    assert Parts(1, 0, None, 0.0, 1.0, 0.0, "best", Later()).keep == "best"
    assert Parts(size=0.1).size == 0.1
    assert Parts(size=None, later=None, anything=None).size is None


def test_modules_positions_and_defaults():
    assert Layer(3).width == 3
    with pytest.raises(OptionError, match="width = 0"):
        Layer(0)
    with pytest.raises(OptionError, match="scale = 0"):
        Layer(3, scale=0)
    with pytest.raises(TypeError):
        Layer()


def test_the_command_line_sees_plain_types():
    parser = ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(Parts, "parts", skip={"later"})
    assert "steps" in inspect.signature(Parts).parameters
    assert "how many. (type: int, default: 3)" in parser.format_help()
    assert parser.parse_args(["--parts.steps=5"]).parts.steps == 5


def test_a_class_without_a_constructor_is_refused():
    with pytest.raises(TypeError, match="no constructor of its own"):

        @checked
        class Nothing:
            pass


@pytest.mark.parametrize("value", [np.int64(3), np.float32(3), torch.tensor(3)])
def test_single_numbers_of_other_libraries_become_pythons(value):
    """Results hold them as JSON."""
    made = Parts(steps=value)
    assert type(made.steps) in (int, float)
    assert made.steps == 3


def test_several_numbers_are_none():
    with pytest.raises(OptionError, match="must be a number"):
        Parts(size=np.array([0.1, 0.2]))
