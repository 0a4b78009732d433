"""Transformations, and the destruction rate."""

import io
import math

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from robusttrain.core.errors import OptionError, UserError
from robusttrain.evaluation import wilson
from robusttrain.transfer import (
    JPEG,
    GaussianBlur,
    GaussianNoise,
    Rotation,
    destruction_curve,
    destruction_rate,
)


@pytest.mark.parametrize("transformation", [Rotation(0), GaussianNoise(0), GaussianBlur(0)])
def test_the_weakest_setting_changes_nothing(transformation, images, streams):
    x = images()
    assert torch.allclose(transformation(x, streams()), x, atol=1e-6)


@pytest.mark.parametrize(
    ("weak", "strong"),
    [
        (Rotation(5), Rotation(20)),
        (GaussianNoise(0.02), GaussianNoise(0.1)),
        (GaussianBlur(0.5), GaussianBlur(2.0)),
        (JPEG(95), JPEG(30)),
    ],
)
def test_options_matter_and_images_stay_images(weak, strong, images, streams):
    x = images(4, side=16).round()  # black and white: noise must be clipped
    changed = []
    for transformation in (weak, strong):
        found = transformation(x, streams())
        assert found.shape == x.shape
        assert found.dtype == x.dtype
        assert found.min() >= 0
        assert found.max() <= 1
        alone = transformation(x[2:3], streams()[2:3])
        assert torch.allclose(found[2:3], alone, atol=1e-6), "an image depends on its batch"
        changed.append((found - x).abs().mean())
    assert 0 < changed[0] < changed[1]


def test_a_quarter_turn_moves_every_pixel_to_its_place(images, streams):
    x = images(2)
    assert torch.allclose(Rotation(90)(x, streams(2)), x.rot90(1, dims=(2, 3)), atol=1e-5)


def test_blur_keeps_a_flat_image_and_spreads_a_point(streams):
    flat = torch.full((1, 3, 16, 16), 0.3)
    assert torch.allclose(GaussianBlur(2.0)(flat, streams(1)), flat, atol=1e-6)
    point = torch.zeros(1, 1, 31, 31)
    point[..., 15, 15] = 1.0
    spread = GaussianBlur(2.0)(point, streams(1))
    place = torch.arange(31) - 15.0
    variance = (spread.sum(dim=2) * place.square()).sum() / spread.sum()
    # The tails beyond three deviations are cut off
    assert variance.sqrt().item() == pytest.approx(2.0, rel=0.03)


def test_a_blur_wider_than_the_image_is_cut_to_it(images, streams):
    assert GaussianBlur(10)(images(side=4), streams()).isfinite().all()


def test_noise_has_its_deviation_and_belongs_to_the_image(streams):
    grey = torch.full((4, 3, 32, 32), 0.5)
    noise = GaussianNoise(0.05)(grey, streams()) - grey
    assert noise.std().item() == pytest.approx(0.05, rel=0.05)
    assert not torch.equal(noise[0], noise[1])
    assert torch.equal(GaussianNoise(0.05)(grey, streams()) - grey, noise)


@pytest.mark.parametrize("channels", [1, 3])
def test_jpeg_is_that_of_pil(channels, streams):
    side = torch.linspace(0, 1, 32)
    x = (side[:, None] * side).expand(2, channels, 32, 32).contiguous()
    found = JPEG(40)(x, streams(2))
    pixels = (x[0] * 255).round().byte().permute(1, 2, 0).squeeze(-1).numpy()
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, format="JPEG", quality=40)
    reference = (
        torch.from_numpy(np.array(Image.open(file))).float().view(32, 32, channels).permute(2, 0, 1)
        / 255
    )
    assert (found[0] - reference).abs().max() <= 2.01 / 255


def test_bad_options_are_one_line(images, streams):
    with pytest.raises(OptionError, match="quality = 0"):
        JPEG(0)
    with pytest.raises(OptionError, match="sigma = -1"):
        GaussianNoise(-1)
    with pytest.raises(OptionError, match="radius = -1"):
        GaussianBlur(-1)
    with pytest.raises(OptionError, match="angle = nan"):
        Rotation(math.nan)
    with pytest.raises(UserError, match="got 2 channels"):
        JPEG(90)(images(channels=2), streams())


def bits(*values):
    return torch.tensor(values, dtype=torch.bool)


def test_the_rate_is_over_images_that_were_right_and_then_fooled():
    clean = bits(1, 1, 1, 1, 0, 0)
    adversarial = bits(0, 0, 0, 1, 0, 0)
    transformed = bits(1, 0, 0, 1, 1, 1)
    rate = destruction_rate(clean, adversarial, transformed)
    assert (rate.value, rate.images) == (pytest.approx(1 / 3), 3)
    assert [rate.low, rate.high] == wilson(rate.value, 3)
    assert destruction_rate(clean, adversarial, transformed, bits(1, 1, 0, 1, 1, 1)).value == 0.5


def test_no_image_fooled_is_not_available():
    assert destruction_rate(bits(1, 0), bits(1, 0), bits(1, 1)).text() == "n/a"
    assert destruction_rate(bits(), bits(), bits()).images == 0


def test_of_random_targets_images_weigh_what_they_were_fooled():
    clean, adversarial = torch.tensor([1.0, 0.5]), torch.tensor([0.0, 0.5])
    rate = destruction_rate(clean, adversarial, torch.tensor([1.0, 0.0]))
    assert rate.value == pytest.approx(1.0 / 1.25)
    assert rate.images == 2
    # 1.25^2 / (1 + 1/16): worth 1.5 images
    assert rate.high - rate.low > wilson(0.8, 2)[1] - wilson(0.8, 2)[0]


class Brightness(nn.Module):
    """Class 1 where the centre is brighter than half."""

    def forward(self, images):
        centre = images[:, :, 3:5, 3:5].mean(dim=(1, 2, 3))
        return torch.stack([0.5 - centre, centre - 0.5], dim=1)


def test_a_curve_has_known_answers(streams):
    images = torch.zeros(3, 1, 8, 8)
    adversarial = images.clone()
    adversarial[:2, :, 3:5, 3:5] = 0.6  # fooled; the third image is not
    adversarial[1] = 0.6  # all of it: blur cannot bring it back
    labels = torch.zeros(3, dtype=torch.int64)
    blurs = {radius: GaussianBlur(radius) for radius in (0.1, 3.0)}
    curve = destruction_curve(Brightness(), images, adversarial, labels, blurs, streams(3), batch=2)
    assert [(strength, rate.value, rate.images) for strength, rate in curve] == [
        (0.1, 0.0, 2),
        (3.0, 0.5, 2),
    ]


def test_a_curve_can_leave_out_what_the_transformation_alone_breaks(streams):
    images = torch.zeros(2, 1, 8, 8)
    adversarial = images.clone()
    adversarial[:, :, 3:5, 3:5] = 0.6

    def wrecks_the_first(shown, rng):
        shown = shown.clone()
        shown[0] = 1.0
        shown[1] = 0.0
        return shown

    labels = torch.zeros(2, dtype=torch.int64)
    for keep_right, rate, count in ((False, 0.5, 2), (True, 1.0, 1)):
        ((_, found),) = destruction_curve(
            Brightness(),
            images,
            adversarial,
            labels,
            {1.0: wrecks_the_first},
            streams(2),
            keep_right=keep_right,
        )
        assert (found.value, found.images) == (rate, count)


def test_draws_of_a_random_target_smooth_the_curve(images, streams, random_linear):
    model, x = random_linear(scale=1.0), images(12)
    labels = model(x, streams(12)).argmax(1)
    fooled = (x + 0.2).clamp(0, 1)
    run = {
        draws: destruction_curve(
            model, x, fooled, labels, {0.0: GaussianNoise(0.1)}, streams(12), draws=draws
        )[0][1]
        for draws in (1, 20)
    }
    assert run[1].value != run[20].value
    assert 0 < run[20].value < 1
