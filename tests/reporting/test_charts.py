"""Charts of numbers and of estimates."""

import torch

from robusttrain.reporting import bars, lines
from robusttrain.transfer import Estimate


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


def test_estimates_have_a_band_and_numbers_lie_on_it():
    share = Estimate.share(torch.tensor([True, False]))
    figure = lines({"shares": [(1, share)], "numbers": [(1, 0.5)]}, "x")
    shares, numbers = (band.get_paths()[0].get_extents() for band in figure.axes[0].collections)
    assert (shares.y0, shares.y1) == (share.low, share.high)
    assert numbers.y0 == numbers.y1 == 0.5


def test_other_bars_end_where_the_values_do():
    (axes,) = bars({"h": 0.02}, "errors", "mean squared error").axes
    assert axes.get_xlim()[1] < 0.1
