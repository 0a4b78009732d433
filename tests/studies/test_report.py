"""Tables and figures."""

from types import SimpleNamespace

import pytest
import torch

from robusttrain.evaluation import Records, Rows
from robusttrain.evaluation.report import Figure
from robusttrain.reporting import decision_regions
from robusttrain.transfer import Regions
from studies import report
from studies.recipes import beside
from studies.scales import SCALES
from studies.study import Study


def test_markdown():
    assert report.markdown(("a", "b"), [(1, "x"), (2, "y")]) == [
        "| a | b |",
        "|---|---|",
        "| 1 | x |",
        "| 2 | y |",
    ]


def test_accuracies():
    figures = SimpleNamespace(robust=Figure(0.25, 0.2, 0.3))
    assert report.robust(SimpleNamespace(attacks={"pgd": figures})) == 0.25
    with pytest.raises(ValueError, match="unpack"):  # which one of them is meant?
        report.only(SimpleNamespace(attacks={"pgd": figures, "wt": figures}))
    assert report.percent(0.5, (0.4, 0.6)) == "50.0 % (40.0 - 60.0)"
    assert report.percent(None) == "-"


def test_lines_are_sorted_and_empty_series_left_out():
    figure = report.lines({"a": [(2, 0.5), (1, 0.25)], "b": []}, "x")
    (line,) = figure.axes[0].lines
    assert line.get_xdata().tolist() == [1, 2]
    assert line.get_ydata().tolist() == [0.25, 0.5]


def test_the_worst_case_is_per_image_over_all_points(tmp_path):
    """Two attacks that each fool another image leave nothing between them."""
    for key, right in (("first", [0, 1]), ("second", [1, 0])):
        verdicts = torch.tensor(right, dtype=torch.bool)[:, None].expand(2, 3)
        clean = torch.ones(2, 3, dtype=torch.bool)
        index, nothing = torch.arange(2), torch.zeros(2)
        rows = {
            name: Rows(index, index, values, values, index > 0, nothing, nothing, nothing)
            for name, values in (("clean", clean), ("pgd", verdicts))
        }
        Records(rows).save(tmp_path / key / "verdicts.safetensors")
    points = {key: SimpleNamespace(folder=tmp_path / key) for key in ("first", "second")}
    study = SimpleNamespace(points=points)
    assert Study.worst_cases(study, "first").tolist() == [0, 1]
    assert Study.worst_cases(study, "first", "second").tolist() == [0, 0]


def test_differences_are_taken_image_by_image():
    """One image of a hundred changes sides: a point up, with the spread of that one alone, whatever
    the others are.
    """
    theirs = torch.tensor([0.0, 1.0] * 50)
    ours = theirs.clone()
    ours[0] = 1.0
    spread = 100 * 1.96 * (0.01 * 0.99 / 99) ** 0.5
    assert beside(ours, theirs) == f"+1.0 ({1 - spread:+.1f} to {1 + spread:+.1f})"
    assert beside(theirs, theirs) == "+0.0 (+0.0 to +0.0)"


def estimate(value, images=9):
    return {"value": value, "ci95": [value / 2, 2 * value], "images": images}


def test_a_report_tells_every_figure_of_a_point_once():
    threat = {"norm": "linf", "epsilon": 0.031}
    cells = {"a": {"a": estimate(0.123456), "b": estimate(0.25)}}
    cells["all but b"] = {"a": estimate(0.5), "b": {"value": None, "ci95": None, "images": 9}}
    point = {
        "command": "python evaluate.py --again a",
        "target": "a.ckpt",
        "plan": {"seed": 0},
        "pictures": [[0.1]],
        "classes": {"a": [[1, 2]]},
        "models": {"a": {"model": {"class_path": "x"}, "defense": None}},
        "threat": threat,
        "audit": [],
        "clean": {"accuracy": 0.123456, "ci95": [0.1, 0.2]},
        "attacks": {
            "fgsm": {"success": {"unit": "%", "cells": cells}, "seconds": {"a": 1.25, "b": 2}}
        },
        "curve": [(1, estimate(0.1)), (2, estimate(0.2, 8))],
        "seconds": 12.5,
    }
    row = {"unit": "%", "images": 9, "targets": ["a", "b"]}
    row["cells"] = {
        "a": [[0.1235, 0.06173, 0.2469], [0.25, 0.125, 0.5]],
        "all but b": [[0.5, 0.25, 1.0], [None, None, None]],
    }
    assert report.condensed(point, threat) == {
        "command": "python evaluate.py --again a",
        "models": ["a"],
        "clean": {"accuracy": 0.123456, "ci95": [0.1, 0.2]},
        "attacks": {"fgsm": {"success": row, "seconds": 3.2}},
        "curve": [[1, [0.1, 0.05, 0.2, 9]], [2, [0.2, 0.1, 0.4, 8]]],
        "seconds": 12.5,
    }
    other = report.condensed({**point, "audit": ["luck"]}, {"norm": "l2", "epsilon": 1.0})
    assert (other["threat"], other["audit"]) == (threat, ["luck"])


def test_counts_that_differ_stay_in_their_cells():
    matrix = {"cells": {"a": {"a": estimate(0.5, 9), "b": estimate(0.5, 8)}}}
    (found,) = report.condensed({"same": matrix}, {}).values()
    assert found == {
        "targets": ["a", "b"],
        "cells": {"a": [[0.5, 0.25, 1.0, 9], [0.5, 0.25, 1.0, 8]]},
    }
    ragged = {"cells": {"a": {"b": estimate(0.5)}, "b": {"a": estimate(0.5)}}}
    (found,) = report.condensed({"same": ragged}, {}).values()
    assert found["cells"]["b"] == {"a": [0.5, 0.25, 1.0, 9]}


def test_a_figure_that_lays_itself_out_is_left_alone(tmp_path):
    figure = decision_regions(Regions({"m": torch.zeros(3, 3, dtype=torch.int64)}, 0.1), 0)
    engine = figure.get_layout_engine()
    study = SimpleNamespace(
        name="s", title="S", command="s", scale=SCALES["smoke"], output=tmp_path, points={}
    )
    report.write(study, ("a",), [(1,)], figure)
    assert figure.get_layout_engine() is engine
