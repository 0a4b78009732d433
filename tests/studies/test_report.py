"""Tables and figures."""

import torch

from robusttrain.evaluation import Records, Rows
from robusttrain.evaluation.report import VERDICTS
from robusttrain.reporting import bars, decision_regions, lines
from robusttrain.transfer import Regions
from studies.recipes import beside
from studies.study import Study, percent


def test_accuracies():
    assert percent(0.5) == "50.0 %"
    assert percent(None) == "-"


def test_bars_stand_in_their_order():
    figure = bars({"first": 0.25, "second": 0.5}, "title")
    (axes,) = figure.axes
    assert [bar.get_width() for bar in axes.patches] == [0.5, 0.25]
    assert axes.get_xlim() == (0, 1)


def test_lines_are_sorted_and_empty_series_left_out():
    figure = lines({"a": [(2, 0.5), (1, 0.25)], "b": []}, "x")
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
    records = {key: Records.read(tmp_path / key / VERDICTS) for key in ("first", "second")}
    assert Records.together({"first": records["first"]}).worst.tolist() == [0, 1]
    assert Records.together(records).worst.tolist() == [0, 0]


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


def test_a_figure_that_lays_itself_out_is_left_alone(tmp_path):
    figure = decision_regions(Regions({"m": torch.zeros(3, 3, dtype=torch.int64)}, 0.1), 0)
    engine = figure.get_layout_engine()
    study = Study("s", "S.", [f"--output={tmp_path}", f"--checkpoints={tmp_path}"])
    study.write(("a",), [(1,)], figure)
    assert "| a |\n| --- |\n| 1 |" in (tmp_path / "study.md").read_text()
    assert figure.get_layout_engine() is engine
