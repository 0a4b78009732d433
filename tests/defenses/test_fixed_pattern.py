"""One fixed pattern of the randomization layers."""

import pytest
import torch
import torch.nn.functional as F

from robusttrain.core.errors import OptionError, UserError
from robusttrain.defenses import FixedResizePad, RandomResizePad
from robusttrain.models.defended import DefendedClassifier


@pytest.mark.parametrize(
    ("position", "padding"),
    [
        ("top-left", (0, 3, 0, 3)),
        ("top-right", (3, 0, 0, 3)),
        ("bottom-left", (0, 3, 3, 0)),
        ("bottom-right", (3, 0, 3, 0)),
        ("center", (1, 2, 1, 2)),
    ],
)
@pytest.mark.parametrize("size", [None, 8])
def test_the_image_stands_where_it_should(position, padding, size, images):
    defended = FixedResizePad(11, size, position)(images())
    torch.testing.assert_close(defended, F.pad(images(), padding), rtol=0, atol=1e-6)


@pytest.mark.parametrize("shape", [(8, 5), (5, 8)])
@pytest.mark.parametrize("position", ["top-left", "bottom-right", "center"])
def test_an_image_that_is_not_square_keeps_its_sides(shape, position):
    images = torch.rand(2, 3, *shape, generator=torch.Generator().manual_seed(0))
    below, beside = 11 - shape[0], 11 - shape[1]
    top, left = {
        "top-left": (0, 0),
        "bottom-right": (below, beside),
        "center": (below // 2, beside // 2),
    }[position]
    defended = FixedResizePad(11, position=position)(images)
    assert torch.equal(defended, F.pad(images, (left, beside - left, top, below - top)))
    with pytest.raises(UserError, match="images of 8 pixels do not fit into canvas = 7"):
        FixedResizePad(7)(images)


@pytest.mark.parametrize("mode", ["bilinear", "nearest"])
def test_resizing_is_interpolation(mode, images):
    options = {"align_corners": False} if mode == "bilinear" else {}
    expected = F.interpolate(images(), size=(11, 11), mode=mode, **options)
    torch.testing.assert_close(
        FixedResizePad(11, 11, mode=mode)(images()), expected, rtol=0, atol=1e-5
    )


def test_it_is_a_pattern_that_the_random_layers_draw(images, streams):
    """One size, two pixels of canvas more: nine places, among them the four corners and the
    middle.
    """
    layers = RandomResizePad(8, 10)
    drawn = torch.cat([layers(images(1), streams(1).fold(draw)) for draw in range(200)])
    for position in ("top-left", "top-right", "bottom-left", "bottom-right", "center"):
        fixed = FixedResizePad(10, 8, position)(images(1))
        assert (drawn - fixed).abs().amax(dim=(1, 2, 3)).min() < 1e-6


def test_nothing_is_drawn(images, convnet):
    target = DefendedClassifier(FixedResizePad(11), convnet())
    assert not target.random
    assert torch.equal(target(images()), target(images()))


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"canvas": 0}, "canvas"),
        ({"canvas": 5, "size": 6}, "size"),
        ({"position": "x"}, "position"),
        ({"mode": "x"}, "mode"),
    ],
)
def test_impossible_options_are_named(options, named):
    with pytest.raises(OptionError, match=rf"^{named} = "):
        FixedResizePad(**options)


def test_an_image_that_does_not_fit_is_refused(images):
    with pytest.raises(UserError, match="images of 8 pixels do not fit into canvas = 7"):
        FixedResizePad(7)(images())
