"""Bit depth, median, total variation, crops: known answers."""

import numpy as np
import pytest
import scipy.ndimage
import scipy.optimize
import torch
import torch.nn.functional as F

from robusttrain.core.errors import OptionError
from robusttrain.core.rng import Rng
from robusttrain.defenses import BitDepth, CropRescale, MedianSmoothing, TotalVariation
from robusttrain.defenses.total_variation import total_variation


def ramp(side=16):
    return (torch.arange(side * side) / (side * side - 1)).view(1, 1, side, side)


# Bit depth


@pytest.mark.parametrize("bits", range(1, 9))
def test_a_ramp_has_the_levels_of_its_bits(bits):
    x, levels = ramp(), 2**bits
    result = BitDepth(bits)(x)
    expected = torch.linspace(0, 1, levels)
    torch.testing.assert_close(result.unique(), expected)
    assert (result - x).abs().max() <= 0.5 / (levels - 1) + 1e-6
    assert (result.flatten().diff() >= 0).all()


def test_one_bit_is_black_and_white():
    x = torch.tensor([-0.2, 0.0, 0.49, 0.51, 1.0, 1.3]).view(1, 1, 1, 6)
    assert BitDepth(1)(x).flatten().tolist() == [0, 0, 0, 1, 1, 1]


@pytest.mark.parametrize("bits", [0, 9, -1])
def test_impossible_bits_are_named(bits):
    with pytest.raises(OptionError, match=rf"^bits = {bits}: must lie between 1 and 8"):
        BitDepth(bits)


# Median


@pytest.mark.parametrize("window", [1, 2, 3, 4, 5])
@pytest.mark.parametrize("shape", [(1, 8, 8), (3, 13, 10), (1, 2, 3)])
def test_it_is_scipys_median_filter(window, shape):
    x = torch.rand(3, *shape, generator=torch.Generator().manual_seed(0))
    expected = scipy.ndimage.median_filter(x.numpy(), size=(1, 1, window, window), mode="reflect")
    assert torch.equal(MedianSmoothing(window)(x), torch.from_numpy(expected))


def test_the_medians_gradient_is_that_of_the_pixels_it_takes(images):
    x = images().requires_grad_()
    result = MedianSmoothing(3)(x)
    (gradient,) = torch.autograd.grad(result.sum(), x)
    # Every pixel of the result is one pixel of the image.
    times = (result.flatten(2)[..., None, :] == x.flatten(2)[..., :, None]).sum(dim=-1)
    assert torch.equal(gradient.flatten(2), times.float())


def test_an_impossible_window_is_named():
    with pytest.raises(OptionError, match=r"^window = 0: must be at least 1"):
        MedianSmoothing(0)


# Total variation


def noisy(count=3, channels=3, side=16):
    """Two flat halves under noise."""
    x = torch.full((count, channels, side, side), 0.3)
    x[..., side // 2 :] = 0.7
    rng = torch.Generator().manual_seed(0)
    return (x + 0.05 * torch.randn(x.shape, generator=rng)).clamp(0, 1)


def objective(z, x, mask, weight, squared):
    fidelity = (mask * (z - x)).square().flatten(1).sum(dim=1)
    fidelity = fidelity / 2 if squared else (fidelity + 1e-24).sqrt()
    return fidelity + weight * total_variation(z)


def test_the_variation_is_the_sum_of_norms_of_rows_and_columns():
    x = torch.tensor([[0.0, 0.3], [0.4, 0.3]]).view(1, 1, 2, 2)
    # Between rows (0.4, 0); between columns (0.3, -0.1).
    assert float(total_variation(x)) == pytest.approx(0.4 + 0.1**0.5, rel=1e-6)


@pytest.mark.parametrize("squared", [False, True])
def test_the_result_varies_less_and_keeps_what_was_not_dropped(squared, streams):
    x = noisy()
    defense = TotalVariation(squared=squared)
    result = defense(x, streams(3))
    mask = streams(3).fold("defense").uniform(x.shape[1:]) >= 0.5
    assert 0.45 < mask.float().mean() < 0.55
    assert (total_variation(result) < 0.85 * total_variation(x)).all()
    assert ((result - x).abs()[mask] < (0.1 if squared else 0.01)).all()
    assert (result - x).abs()[~mask].mean() > 0.02
    assert 0 <= result.min() <= result.max() <= 1


@pytest.mark.parametrize("squared", [False, True])
def test_what_was_dropped_leaves_no_trace(squared, streams):
    x = noisy()
    mask = (streams(3).fold("defense").uniform(x.shape[1:]) >= 0.5).float()
    other = x * mask + torch.rand(x.shape) * (1 - mask)
    defense = TotalVariation(squared=squared, steps=5)
    torch.testing.assert_close(defense(other, streams(3)), defense(x, streams(3)))


@pytest.mark.parametrize("squared", [False, True])
@pytest.mark.parametrize("weight", [0.03, 0.3])
def test_no_other_solver_gets_lower(squared, weight):
    """L-BFGS with a numerical safeguard, as the authors use it, on an image of one colour."""
    x = noisy(1, 1, 8)
    mask = (torch.rand(x.shape, generator=torch.Generator().manual_seed(1)) > 0.5).float()

    def value(flat):
        z = torch.from_numpy(flat).view(x.shape).requires_grad_()
        total = objective(z, x.double(), mask.double(), weight, squared).sum()
        (gradient,) = torch.autograd.grad(total, z)
        return total.item(), gradient.flatten().numpy()

    start = (x * mask + 0.5 * (1 - mask)).double().flatten().numpy()
    theirs = scipy.optimize.minimize(
        value, start, jac=True, method="L-BFGS-B", bounds=[(0, 1)] * 64, options={"maxiter": 2000}
    ).fun
    ours = TotalVariation(0.5, weight, squared, steps=400).solved(x, mask)
    assert float(objective(ours, x, mask, weight, squared)) <= theirs * 1.005
    default = TotalVariation(0.5, weight, squared).solved(x, mask)
    assert (default - ours).abs().mean() < 0.01


def test_with_nothing_dropped_it_is_not_random(streams):
    defense, x = TotalVariation(drop=0), noisy()
    assert not defense.random
    torch.testing.assert_close(defense(x, streams(3)), x, rtol=0, atol=1e-3)


@pytest.mark.parametrize(
    "option", [{"drop": 0.8}, {"weight": 0.5}, {"squared": True}, {"steps": 3}], ids=str
)
def test_every_option_of_total_variation_changes_the_outcome(option, streams):
    plain = TotalVariation()(noisy(), streams(3))
    assert (TotalVariation(**option)(noisy(), streams(3)) - plain).abs().max() > 0.01


@pytest.mark.parametrize(
    ("option", "value"), [("drop", 1.0), ("drop", -0.1), ("weight", 0.0), ("steps", 0)]
)
def test_impossible_options_of_total_variation_are_named(option, value):
    with pytest.raises(OptionError, match=rf"^{option} = "):
        TotalVariation(**{option: value})


# Crops


@pytest.mark.parametrize(("side", "crop"), [(224, 90), (32, 13), (8, 3), (1, 1)])
def test_the_crop_is_90_of_224_pixels_by_default(side, crop):
    assert CropRescale().size(side) == crop


def test_every_crop_occurs_as_often_as_it_should_and_is_rescaled():
    count, x = 900, ramp(5)
    result = CropRescale(0.6)(x.expand(count, 1, 5, 5), Rng.for_images(0, torch.arange(count)))
    crops = [x[..., top : top + 3, left : left + 3] for top in range(3) for left in range(3)]
    every = torch.cat([F.interpolate(crop, size=(5, 5), mode="bilinear") for crop in crops])
    distance = (result - every[:, 0]).abs().amax(dim=(2, 3))
    assert distance.min(dim=1).values.max() < 1e-6
    times = np.bincount(distance.argmin(dim=1), minlength=9)
    assert (abs(times - 100) < 5 * 100**0.5).all()


def test_images_that_are_no_squares_keep_their_shape(streams):
    x = torch.rand(4, 3, 12, 20)
    assert CropRescale(0.5)(x, streams()).shape == x.shape


def test_the_whole_image_is_a_crop(images, streams):
    torch.testing.assert_close(CropRescale(1.0)(images(), streams()), images())


@pytest.mark.parametrize("share", [0.0, -1.0, 1.1, float("nan")])
def test_an_impossible_share_is_named(share):
    with pytest.raises(OptionError, match=r"^share = "):
        CropRescale(share)
