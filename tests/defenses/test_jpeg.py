"""JPEG: the real encoder to the bit, and the differentiable twin next to it."""

from io import BytesIO

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from robusttrain.core.errors import OptionError, UserError
from robusttrain.defenses import JPEG, DifferentiableJPEG, jpeg
from robusttrain.defenses.jpeg import soft_round, tables


def photographs(count=8, channels=3, height=32, width=32):
    """Smooth images with a little noise: (B, C, H, W)."""
    rng = torch.Generator().manual_seed(0)
    coarse = torch.rand(count, channels, height // 4 + 2, width // 4 + 2, generator=rng)
    smooth = F.interpolate(coarse, size=(height, width), mode="bicubic")
    return (smooth + 0.03 * torch.randn(smooth.shape, generator=rng)).clamp(0, 1)


def through_pillow(image, quality):
    pixels = np.rint(image.permute(1, 2, 0).numpy() * 255).astype(np.uint8).squeeze()
    file = BytesIO()
    Image.fromarray(pixels).save(file, format="JPEG", quality=quality)
    decoded = np.asarray(Image.open(BytesIO(file.getvalue())))
    return torch.from_numpy(decoded.reshape(*image.shape[1:], -1).copy()).permute(2, 0, 1) / 255


def rms(values):
    return float(values.square().mean().sqrt())


@pytest.mark.parametrize("quality", [10, 75, 95])
@pytest.mark.parametrize("shape", [(1, 8, 8), (3, 32, 32), (3, 37, 50)])
def test_it_is_pillows_encoder_and_decoder(quality, shape):
    x = photographs(3, *shape)
    result = JPEG(quality)(x)
    assert torch.equal(result, torch.stack([through_pillow(image, quality) for image in x]))
    assert (result - x).abs().max() > 0.01


def test_values_off_the_box_are_clipped():
    x = photographs(2)
    assert torch.equal(JPEG()(3 * x - 1), JPEG()((3 * x - 1).clamp(0, 1)))
    torch.testing.assert_close(
        DifferentiableJPEG()(3 * x - 1), DifferentiableJPEG()((3 * x - 1).clamp(0, 1))
    )


def test_soft_rounding_is_the_papers():
    values = torch.tensor([0.0, 0.3, 0.6, -1.2, 2.0], requires_grad=True)
    torch.testing.assert_close(
        soft_round(values).detach(), torch.tensor([0.0, 0.027, 0.936, -1.008, 2.0])
    )
    (slope,) = torch.autograd.grad(soft_round(values).sum(), values)
    torch.testing.assert_close(slope, torch.tensor([0.0, 0.27, 0.48, 0.12, 0.0]))


def test_tables_are_those_of_the_standard():
    assert tables(50)[0][:8] == [16, 11, 10, 16, 24, 40, 51, 61]
    assert tables(75)[0][:8] == [8, 6, 5, 8, 12, 20, 26, 31]
    assert tables(50)[1][:5] == [17, 18, 24, 47, 99]


# Edges and odd sizes: blocks that are filled up, and colours of few pixels.
SHAPES = [(1, 8, 8), (1, 28, 28), (3, 32, 32), (3, 33, 31), (3, 37, 50), (3, 16, 12), (3, 8, 8)]


@pytest.mark.parametrize("quality", [30, 75, 95])
@pytest.mark.parametrize("shape", SHAPES)
def test_the_twin_is_close_to_the_encoder(quality, shape):
    """Within four grey levels in the mean, and nearer to the encoder than the image is."""
    x = photographs(8, *shape)
    real, twin = JPEG(quality)(x), DifferentiableJPEG(quality)(x)
    assert (twin - real).abs().mean() < 4 / 255
    if quality < 95 or shape[0] == 3:  # otherwise the encoder changes hardly more than it rounds
        assert rms(twin - real) < 0.4 * rms(x - real)


@pytest.mark.parametrize("shape", [(1, 28, 28), (3, 32, 32), (3, 33, 31), (3, 16, 12)])
def test_with_true_rounding_the_twin_is_the_encoder(shape, monkeypatch):
    """Colours, subsampling, edges, cosines and tables are libjpeg's: what is left is rounding of
    pixels and of colours to 8 bits, which moves few coefficients to another step.
    """
    monkeypatch.setattr(jpeg, "soft_round", torch.round)
    x = (photographs(200, *shape) * 255).round() / 255
    difference = (DifferentiableJPEG(75)(x) - JPEG(75)(x)).abs()
    assert difference.mean() < (0.5 if shape[0] == 1 else 2.0) / 255
    assert difference.median() < 1.5 / 255


def test_the_twins_gradient_goes_through_all_steps(monkeypatch):
    """With a smooth function in place of soft rounding, which jumps at halves, a small step changes
    the twin by as much as the gradient says.
    """
    monkeypatch.setattr(jpeg, "soft_round", lambda values: values + 0.1 * torch.sin(values))
    x = 0.2 + 0.6 * photographs(2)
    weights = torch.randn(x.shape, generator=torch.Generator().manual_seed(1)).double()

    def value(points):
        return (DifferentiableJPEG()(points) * weights).sum()

    points = x.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(value(points), points)
    step = 1e-3 * gradient / gradient.abs().max()
    torch.testing.assert_close(
        value(x + step) - value(x - step), 2 * (gradient * step).sum().double(), rtol=0.02, atol=0
    )


@pytest.mark.parametrize("channels", [1, 3])
def test_black_and_white_pixels_have_the_gradient_of_those_beside_them(channels):
    """An attack that begins at an image of a digit has to leave black and white."""
    draws = torch.Generator().manual_seed(0)
    x = (torch.rand(2, channels, 16, 16, generator=draws) > 0.7).float()
    weights = torch.randn(x.shape, generator=draws)

    def gradient(points):
        points = points.clone().requires_grad_()
        return torch.autograd.grad((DifferentiableJPEG()(points) * weights).sum(), points)[0]

    found, inside = gradient(x), gradient(x.clamp(1e-5, 1 - 1e-5))
    assert F.cosine_similarity(found.flatten(1), inside.flatten(1)).min() > 0.999


def test_the_encoder_hands_out_its_twin_of_the_same_quality():
    twin = JPEG(40).twin()
    assert isinstance(twin, DifferentiableJPEG)
    assert twin.quality == 40
    assert JPEG().has_twin
    assert not JPEG.differentiable
    assert twin.differentiable
    assert not twin.has_twin


def test_quality_changes_the_outcome():
    x = photographs(2)
    for kind in (JPEG, DifferentiableJPEG):
        assert (kind(20)(x) - kind(75)(x)).abs().mean() > 0.003


@pytest.mark.parametrize("kind", [JPEG, DifferentiableJPEG])
@pytest.mark.parametrize("quality", [0, 101, -5])
def test_an_impossible_quality_is_named(kind, quality):
    with pytest.raises(OptionError, match=rf"^quality = {quality}: must lie between 1 and 100"):
        kind(quality)


@pytest.mark.parametrize("kind", [JPEG, DifferentiableJPEG])
def test_images_of_other_channels_are_refused(kind, images):
    with pytest.raises(UserError, match="1 and 3 channels, and these have 4"):
        kind()(images(2, 4))
