"""Figures with intervals, and their tables."""

import json
import math
from dataclasses import replace

import pytest
import torch
from rich.console import Console

from robusttrain.evaluation import wilson
from robusttrain.transfer import Estimate, Matrix


def test_a_share_is_over_the_images_that_count():
    scores = torch.tensor([1.0, 0.0, 0.5, 1.0])
    found = Estimate.share(scores, torch.tensor([True, True, True, False]))
    assert found.value == 0.5
    assert found.images == 3
    assert [found.low, found.high] == wilson(0.5, 3)
    assert Estimate.share(scores).value == 0.625


def test_no_image_is_not_available_and_no_error():
    for found in (
        Estimate.share(torch.zeros(0)),
        Estimate.mean(torch.ones(2), torch.zeros(2, dtype=torch.bool)),
    ):
        assert math.isnan(found.value)
        assert found.images == 0
        assert found.text() == "n/a"
        assert found.json() == {"value": None, "ci95": None, "images": 0}


def test_a_mean_and_its_interval():
    found = Estimate.mean(torch.tensor([1.0, 2.0, 3.0, 6.0]))
    # Squared deviations 4, 1, 0, 9 over 3; the root of four images is 2
    half = 1.959964 * math.sqrt(14 / 3) / 2
    assert [found.value, found.low, found.high] == pytest.approx([3, 3 - half, 3 + half])


def test_one_image_has_a_mean_and_no_interval():
    found = Estimate.mean(torch.tensor([0.25]))
    assert found.text("") == "0.250"
    assert found.json() == {"value": 0.25, "ci95": None, "images": 1}


@pytest.mark.parametrize(
    ("unit", "told"),
    [
        ("%", "12.5 % (5.0 - 20.0)"),
        ("1/255", "31.88 (12.75 - 51.00)"),
        ("", "0.125 (0.050 - 0.200)"),
    ],
)
def test_units(unit, told):
    assert Estimate(0.125, 0.05, 0.2, 10).text(unit) == told
    assert Estimate(-0.1, -0.3, -0.2, 10).text("") == "-0.100 (-0.300 to -0.200)"
    assert Estimate(0.125, 0.05, 0.2, 10).text(unit, interval=False) == told.partition(" (")[0]


def one(value, images):
    return Estimate(value, value - 0.1, value + 0.1, images)


def test_a_table_of_equal_denominators_tells_it_once():
    matrix = Matrix(
        "top-1 success rate",
        "that b had right before",
        {"a": {"b": one(0.5, 1200), "c": one(0.25, 1200)}},
    )
    assert matrix.markdown().splitlines() == [
        "top-1 success rate, of 1,200 images that b had right before",
        "",
        "| source \\ target | b | c |",
        "|---|---:|---:|",
        "| a | 50.0 % (40.0 - 60.0) | 25.0 % (15.0 - 35.0) |",
    ]


def test_cells_of_different_denominators_tell_theirs():
    matrix = Matrix(
        "top-1 success rate", "", {"a": {"b": one(0.5, 7), "c": Estimate.share(torch.zeros(0))}}
    )
    assert matrix.lines() == [["a", "50.0 % (40.0 - 60.0) of 7", "n/a of 0"]]
    assert matrix.caption == "top-1 success rate"
    assert (
        replace(matrix, denominator="that b had right").caption
        == "top-1 success rate, of the images that b had right"
    )


def test_the_terminal_gets_the_same_cells():
    matrix = Matrix("success", "", {"a": {"b": one(0.5, 7)}, "d": {"b": one(0.75, 7)}})
    console = Console(width=100, record=True, file=None, quiet=False)
    with console.capture() as captured:
        console.print(matrix.table())
    assert "75.0 % (65.0 - 85.0)" in captured.get()
    assert "success, of 7 images" in captured.get()


def test_names_break_no_table():
    name = "a|b [/red] [bold]"
    matrix = Matrix("success", f"of {name}", {name: {name: one(0.5, 7)}})
    console = Console(width=100)
    with console.capture() as captured:
        console.print(matrix.table())
    assert captured.get().count(name) == 3
    last = matrix.markdown().splitlines()[-1]
    assert last == r"| a\|b [/red] [bold] | 50.0 % (40.0 - 60.0) |"


def test_json_can_be_written_and_values_are_a_tensor():
    matrix = Matrix(
        "success", "all", {"a": {"b": one(0.5, 7), "c": Estimate.share(torch.zeros(0))}}
    )
    cells = json.loads(json.dumps(matrix.json(), allow_nan=False))["cells"]
    assert cells["a"] == {
        "b": {"value": 0.5, "ci95": [0.4, 0.6], "images": 7},
        "c": {"value": None, "ci95": None, "images": 0},
    }
    values = matrix.values()
    assert values[0, 0] == 0.5
    assert values[0, 1].isnan()
    assert Matrix("none", "", {}).values().numel() == 0
