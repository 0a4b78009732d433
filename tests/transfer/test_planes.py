"""Gradients and their angles, planes and decision regions."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from robusttrain.attacks import Backprop, CrossEntropy, Loss, Margin, Smooth
from robusttrain.core.errors import OptionError, UserError
from robusttrain.transfer import (
    angle_matrix,
    cosines,
    gradients,
    orthogonal,
    regions,
    rejection,
    rmsd,
    unit,
)


def test_gradients_are_those_of_the_loss_whatever_the_batch(images, streams, curved):
    model, x, labels = curved(), images(6), torch.arange(6) % 4
    found = gradients(model, x, labels, streams(6), batch=4)
    _, reference = Backprop()(Loss(model, CrossEntropy(), labels), x, streams(6))
    assert torch.allclose(found, reference, atol=1e-6)
    smooth = gradients(
        model, x, labels, streams(6), estimator=Smooth(samples=8, sigma=0.2), batch=4
    )
    other_batch = gradients(
        model, x, labels, streams(6), estimator=Smooth(samples=8, sigma=0.2), batch=6
    )
    assert torch.allclose(smooth, other_batch, atol=1e-6)
    assert F.cosine_similarity(smooth.flatten(1), found.flatten(1)).max() < 0.999
    margin = gradients(model, x, labels, streams(6), objective=Margin())
    assert not torch.allclose(margin, found)
    assert gradients(model, x[:0], labels[:0], streams(0)).shape == (0, 3, 8, 8)


def test_cosines_of_known_gradients():
    first = torch.tensor([[[[1.0, 0.0]]], [[[1.0, 1.0]]], [[[1.0, 0.0]]]])
    second = torch.tensor([[[[0.0, 2.0]]], [[[3.0, 0.0]]], [[[0.0, 0.0]]]])
    found = cosines({"a": first, "b": second * 1e-30})  # squared, these would vanish
    assert found[:, 0, 1].tolist() == pytest.approx([0.0, math.sqrt(0.5), math.nan], nan_ok=True)
    matrix = angle_matrix({"a": first, "b": second * 1e-30})
    cell = matrix.cells["a"]["b"]
    # No angle on the third image
    assert (cell.value, cell.images) == (
        pytest.approx(math.sqrt(0.5) / 2),
        2,
    )
    assert matrix.cells["b"]["a"].value == pytest.approx(cell.value)
    assert matrix.cells["a"]["a"].value == pytest.approx(1.0)
    assert angle_matrix({"a": first, "b": second}, degrees=True).cells["a"][
        "b"
    ].value == pytest.approx((90 + 45) / 2)


def test_gradients_that_are_all_zero_have_no_angle():
    zero = torch.zeros(2, 3, 4, 4)
    assert angle_matrix({"a": zero, "b": zero}).cells["a"]["b"].text("") == "n/a"


def test_a_random_direction_is_exactly_orthogonal_and_has_rmsd_1(streams):
    for seed in range(5):
        direction = torch.randn(3, 64, 64, generator=torch.Generator().manual_seed(seed)) * 1e-6
        other = orthogonal(direction, streams(1, seed))
        cosine = (unit(direction).double() * other.double()).mean()
        assert abs(float(cosine)) < 1e-8
        assert rmsd(other[None], torch.zeros(1, 3, 64, 64)).item() == pytest.approx(1.0, abs=1e-6)
    assert torch.equal(other, orthogonal(direction, streams(1, 4)))
    assert not torch.equal(other, orthogonal(direction, streams(1, 5)))


def test_the_rejection_and_the_projection_make_up_the_direction():
    along, direction = torch.tensor([[[1.0, 1.0]]]), torch.tensor([[[3.0, 1.0]]])
    assert rejection(direction, along).tolist() == [[[1.0, -1.0]]]
    assert rejection(2 * along, along).abs().max() < 1e-12


def test_a_sign_pattern_is_a_unit_direction_as_it_is():
    signs = torch.randn(3, 8, 8).sign()
    assert torch.equal(unit(signs), signs)
    assert torch.allclose(unit(1e-30 * signs), signs)


@pytest.mark.parametrize("direction", [torch.zeros(1, 2, 2), torch.full((1, 2, 2), math.nan)])
def test_a_direction_without_length_is_one_line(direction):
    with pytest.raises(UserError, match="needs a length"):
        unit(direction)


class Quadrants(nn.Module):
    """Class by the mean pixel value of the left and of the right half: left > 0.6, right > 0.6 make
    1, 2, 3.
    """

    def forward(self, images):
        side = images.shape[-1] // 2
        left = images[..., :side].mean(dim=(1, 2, 3)) > 0.6
        right = images[..., side:].mean(dim=(1, 2, 3)) > 0.6
        return F.one_hot(left.long() + 2 * right.long(), 4).float()


def halves():
    left = torch.zeros(1, 8, 8)
    left[..., :4] = 1
    return left, 1 - left


def test_regions_of_a_known_model(streams):
    left, right = halves()
    image = torch.full((1, 8, 8), 0.5)
    # A direction over half of the pixels has RMSD sqrt(1/2): scaled to 1, its pixels move by
    # sqrt(2) u.
    found = regions(
        {"m": Quadrants()}, image, left, right, reach=0.2, rng=streams(1), points=5, batch=7
    )
    assert found.reach == 0.2
    # u, v in -0.2, -0.1, 0, 0.1, 0.2: beyond 0.1 / sqrt(2) the half is bright. Rows are v (right),
    # columns u (left).
    assert found.classes["m"].tolist() == [[0, 0, 0, 1, 1]] * 3 + [[2, 2, 2, 3, 3]] * 2
    assert found.counts() == {"m": 4}


def test_the_middle_of_the_grid_is_the_image_and_points_are_clipped(streams):
    left, right = halves()
    seen = []

    class Spy(nn.Module):
        def forward(self, images):
            seen.append(images)
            return torch.zeros(len(images), 2)

    image = 0.9 * torch.rand(1, 8, 8, generator=torch.Generator().manual_seed(0))
    regions({"m": Spy()}, image, left, right, reach=0.3, rng=streams(1), points=3)
    (shown,) = seen
    assert torch.equal(shown[4], image)
    assert shown.min() >= 0
    assert shown.max() <= 1
    assert torch.allclose(shown[5], (image + 0.3 * math.sqrt(2) * left).clamp(0, 1))
    assert torch.allclose(shown[7], (image + 0.3 * math.sqrt(2) * right).clamp(0, 1))


def test_a_random_model_answers_with_one_draw_everywhere(images, streams, random_linear):
    model, x = random_linear(scale=1.0), images(1)[0]
    flat = regions(
        {"m": model},
        x,
        torch.ones(3, 8, 8),
        torch.ones(3, 8, 8),
        1e-6,
        streams(1),
        points=5,
        batch=4,
    )
    assert flat.counts() == {"m": 1}


def test_options_of_regions_are_checked(images, streams, linear):
    x = images(1)[0]
    with pytest.raises(OptionError, match="reach = 0"):
        regions({"m": linear()}, x, x, 1 - x, 0, streams(1))
    with pytest.raises(UserError, match="points = 4: must be odd"):
        regions({"m": linear()}, x, x, 1 - x, 0.1, streams(1), points=4)
    with pytest.raises(OptionError, match="points = 1"):
        regions({"m": linear()}, x, x, 1 - x, 0.1, streams(1), points=1)


def test_answers_that_are_not_finite_are_no_region(images, streams):
    class Broken(nn.Module):
        def forward(self, images):
            return torch.full((len(images), 2), torch.nan)

    x = images(1)[0]
    found = regions({"m": Broken()}, x, x, 1 - x, 0.1, streams(1), points=3)
    assert (found.classes["m"] == -1).all()
    assert found.counts() == {"m": 0}
