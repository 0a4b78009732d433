"""Pictures show the numbers that they were given."""

import io
import math

import numpy as np
import pytest
import torch
from matplotlib.colors import to_hex
from matplotlib.text import Text
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch.utils.tensorboard import SummaryWriter

from robusttrain.reporting import (
    boundaries,
    centred,
    decision_regions,
    heat_map,
    lines,
    perturbations,
    png,
    rgb,
)
from robusttrain.reporting.canvas import COLOURS
from robusttrain.transfer import Estimate, Matrix, Regions

EMPTY = Estimate.share(torch.zeros(0))


def at(value):
    return Estimate(value, value - 0.1, value + 0.1, 50)


def matrix(**options):
    return Matrix(
        "success",
        "in all",
        {"a": {"a": at(0.95), "b": at(0.2)}, "c": {"a": at(0.5), "b": EMPTY}},
        **options,
    )


def texts(axes):
    return [text.get_text() for text in axes.texts]


def open_png(figure):
    return Image.open(io.BytesIO(png(figure, dpi=50)))


def test_lines_are_sorted_have_bands_and_leave_out_what_is_not_available():
    figure = lines(
        {"m": [(4, at(0.5)), (1, at(0.25)), (2, EMPTY)], "none": [(1, EMPTY)]}, "steps N", log=True
    )
    (axes,) = figure.axes
    (line,) = axes.lines
    assert line.get_xdata().tolist() == [1, 4]
    assert line.get_ydata().tolist() == [0.25, 0.5]
    (band,) = axes.collections
    assert sorted(set(band.get_paths()[0].vertices[:, 1].round(6))) == pytest.approx(
        [0.15, 0.35, 0.4, 0.6]
    )
    assert [text.get_text() for text in axes.get_legend().get_texts()] == ["m"]
    assert (axes.get_xlabel(), axes.get_ylabel(), axes.get_xscale()) == (
        "steps N",
        "success rate",
        "log",
    )
    assert open_png(figure).size == (320, 210)


def test_charts_of_steps_marks_and_plain_values():
    figure = lines(
        {"m": [(0, at(0.5)), (1, at(7.0))]},
        "x",
        "angle",
        percent=False,
        steps=True,
        marks={"median": 0.5},
    )
    (axes,) = figure.axes
    assert axes.lines[0].get_drawstyle() == "steps-post"
    assert axes.lines[1].get_xdata() == [0.5, 0.5]
    assert axes.get_ylim()[1] > 7
    assert lines({}, "x").axes[0].get_legend() is None


def test_series_differ_in_more_than_colour():
    figure = lines({str(i): [(0, at(0.5)), (1, at(0.6))] for i in range(6)}, "x")
    looks = [(line.get_color(), line.get_marker()) for line in figure.axes[0].lines]
    assert len({colour for colour, _ in looks}) == len({marker for _, marker in looks}) == 6


def test_a_heat_map_tells_every_number_and_hatches_what_is_not_available():
    (axes,) = heat_map(matrix()).axes
    assert texts(axes) == [
        "95.0 %",
        "85.0 - 105.0, of 50",
        "20.0 %",
        "10.0 - 30.0, of 50",
        "50.0 %",
        "40.0 - 60.0, of 50",
        "n/a",
        "of 0",
    ]
    hatched = [patch for patch in axes.patches if patch.get_hatch()]
    assert [patch.get_xy() for patch in hatched] == [(0.5, 0.5)]
    framed = [patch for patch in axes.patches if not patch.get_fill()]
    assert len(framed) == 1  # row a, column a
    assert [label.get_text() for label in axes.get_xticklabels()] == ["a", "b"]
    assert [label.get_text() for label in axes.get_yticklabels()] == ["a", "c"]
    assert (axes.get_ylabel(), axes.get_xlabel()) == ("source", "target (framed: white box)")


def test_a_heat_map_frames_what_it_is_told_and_scales_what_is_no_share():
    (axes,) = heat_map(matrix(unit=""), outlined={("a", "b"), ("c", "a")}).axes
    assert len([patch for patch in axes.patches if not patch.get_fill()]) == 2
    assert axes.images[0].get_clim() == (0.0, 0.95)
    assert texts(axes)[0] == "0.950"
    empty = Matrix("success", "", {"a": {"b": EMPTY}})
    (axes,) = heat_map(matrix(corner="model \\ model")).axes
    assert not [patch for patch in axes.patches if not patch.get_fill()], "no source, no white box"
    assert texts(heat_map(empty).axes[0]) == ["n/a"]


def test_ink_can_be_read_on_its_cell():
    (axes,) = heat_map(matrix()).axes
    inks = {text.get_text(): text.get_color() for text in axes.texts}
    assert inks["20.0 %"] == "white"
    assert inks["95.0 %"] == "black"


def test_perturbations_are_amplified_and_tell_by_how_much(images):
    x = images(2)
    adversarial = x.clone()
    adversarial[0, :, 2, 3] += 0.1
    figure = perturbations(x, {"pgd": adversarial}, ["cat", "dog"], {"pgd": ["fish", "dog"]})
    panels = np.array(figure.axes).reshape(2, 3)
    assert [panel.get_title() for panel in panels[0]] == ["image", "pgd", "its perturbation"]
    shown = panels[0, 2].images[0].get_array()
    assert shown[2, 3].tolist() == pytest.approx([1, 1, 1])
    assert shown[0, 0].tolist() == pytest.approx([0.5, 0.5, 0.5])
    # One pixel of 64
    assert panels[0, 2].get_xlabel() == f"x 5.0; /255: RMSD {25.5 / 8:.1f}, max 25.5"
    assert panels[1, 2].get_xlabel() == "none; /255: RMSD 0.0, max 0.0"
    assert panels[0, 1].get_xlabel() == "\N{BALLOT X} fish"
    assert panels[1, 1].get_xlabel() == "\N{CHECK MARK} dog"
    assert panels[0, 1].xaxis.label.get_color() != panels[1, 1].xaxis.label.get_color()
    assert open_png(figure).size[0] > 100


def test_grey_images_and_changes():
    assert rgb(torch.full((1, 2, 2), 1.5)).tolist() == [[[1.0] * 3] * 2] * 2
    change = torch.tensor([-0.1, 0.0, 0.05, 0.1]).view(1, 1, 2, 2)
    assert centred(change).flatten().tolist() == pytest.approx([0, 0.5, 0.75, 1])


GRID = torch.tensor([[1, 1, 2], [0, 0, 2], [0, -1, 3]])


def test_regions_have_one_colour_a_class_and_one_legend():
    figure = decision_regions(
        Regions({"m": GRID, "k": GRID.clamp(0, 1)}, 10 / 255), 0, lambda c: f"class {c}"
    )
    (legend,) = figure.legends
    told = {
        text.get_text(): handle
        for text, handle in zip(legend.get_texts(), legend.legend_handles, strict=True)
    }
    assert list(told) == [
        "class 0 (true)",
        "class 1",
        "class 2",
        "class 3",
        "not finite",
        "the image",
    ]
    panels = figure.axes
    assert [panel.get_title() for panel in panels] == ["m: 4 classes", "k: 2 classes"]
    (drawn,) = panels[0].images
    assert drawn.origin == "lower"
    # Three points at -10, 0, 10, each 10 wide
    assert drawn.get_extent() == pytest.approx((-15, 15, -15, 15))
    for (row, column), name in {
        (0, 0): "class 1",
        (0, 2): "class 2",
        (2, 2): "class 3",
        (2, 1): "not finite",
    }.items():
        colour = drawn.cmap(drawn.norm(drawn.get_array()[row, column]))
        assert to_hex(colour) == to_hex(told[name].get_facecolor())
    assert to_hex(told["class 1"].get_facecolor()).upper() == COLOURS[0]  # the largest
    assert "RMSD, 1/255" in figure.get_supxlabel()
    assert open_png(figure).size[0] > 100


def test_classes_beyond_the_colours_share_one():
    many = torch.arange(25).view(5, 5)
    figure = decision_regions(Regions({"m": many}, 0.1), 12)
    told = [text.get_text() for text in figure.legends[0].get_texts()]
    assert told[0] == "12 (true)"
    assert told[-2:] == ["17 other classes", "the image"]
    assert len(told) == 1 + 7 + 2


def test_panels_of_many_models_are_wrapped():
    figure = decision_regions(Regions({str(i): GRID for i in range(7)}, 0.1), 0)
    assert [panel.get_visible() for panel in figure.axes] == [True] * 7 + [False]


def test_borders_lie_between_the_points_that_differ():
    inside = torch.zeros(5, 5, dtype=torch.int64)
    inside[1:4, 1:4] = 7
    figure = boundaries(
        Regions({"m": inside, "none": inside * 0, "all": inside * 0 + 7}, 20 / 255), 7
    )
    (axes,) = figure.axes
    (contour,) = axes.collections
    vertices = np.concatenate([path.vertices for path in contour.get_paths()])
    # Half-way between 10 (inside) and 20 (outside)
    assert np.abs(vertices).max() == pytest.approx(15)
    told = [text.get_text() for text in figure.legends[0].get_texts()]
    assert told == ["m", "none (nowhere)", "all (everywhere)", "the image"]


@pytest.mark.parametrize("name", ["a$x^$ [b]", "$5 to $6", r"\$x_1$", "plain"])
def test_names_are_shown_as_they_are(name, images):
    """Two dollar signs are no formula, which may not even be one."""
    images = images()
    shown = matrix()
    cells = {name: {name: at(0.5)}}
    figures = [
        heat_map(type(shown)(name, name, cells)),
        lines({name: [(1, at(0.5)), (100, at(0.4))]}, name, log=True),
        perturbations(images, {name: images}, [name] * len(images), {name: [name] * len(images)}),
    ]
    for figure in figures:
        open_png(figure)
        named = [text for text in figure.findobj(Text) if name in text.get_text()]
        assert named
        assert not any(text.get_parse_math() for text in named if not text.get_wrap())
    (title,) = (text for text in figures[0].findobj(Text) if text.get_wrap())
    assert title._preprocess_math(title.get_text())[1] is False
    formulas = [text for text in figures[1].findobj(Text) if "mathdefault" in text.get_text()]
    assert all(text.get_parse_math() for text in formulas)


def test_tensorboard_takes_the_figures(tmp_path):
    writer = SummaryWriter(tmp_path)
    writer.add_figure("transfer/matrix", heat_map(matrix()), close=False)
    writer.close()
    board = EventAccumulator(str(tmp_path)).Reload()
    (image,) = board.Images("transfer/matrix")
    assert (image.width, image.height) == (470, 274)


def test_a_value_that_is_nan_alone_does_not_break_the_scale():
    broken = Matrix("cosine", "", {"a": {"b": Estimate(0.3, math.nan, math.nan, 1)}}, unit="")
    assert texts(heat_map(broken).axes[0]) == ["0.300"], "one denominator stands in the caption"
