"""Batched resizing and padding equals interpolate and pad, image by image."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from robusttrain.core.resize import resize_and_pad


def one_by_one(
    images: Tensor, sizes: Tensor, top: Tensor, left: Tensor, canvas: int, mode: str
) -> Tensor:
    options = {"align_corners": False, "antialias": False} if mode == "bilinear" else {}
    results = []
    for image, size, above, before in zip(
        images, sizes.tolist(), top.tolist(), left.tolist(), strict=True
    ):
        resized = F.interpolate(image[None], size=(size, size), mode=mode, **options)
        results.append(
            F.pad(resized, (before, canvas - size - before, above, canvas - size - above))
        )
    return torch.cat(results)


def draws(count: int, canvas: int) -> tuple[Tensor, Tensor, Tensor]:
    """Sizes from 1 to the canvas, each at a random place."""
    rng = torch.Generator().manual_seed(0)
    sizes = torch.arange(count) % canvas + 1
    top, left = ((torch.rand(count, generator=rng) * (canvas - sizes + 1)).long() for _ in range(2))
    return sizes, top, left


@pytest.mark.parametrize("mode", ["bilinear", "nearest"])
@pytest.mark.parametrize(("side", "canvas"), [(7, 12), (32, 36), (12, 7), (32, 32), (1, 3), (5, 1)])
def test_equals_interpolate_and_pad(side, canvas, mode, images):
    batch = images(2 * canvas, 3, side)
    where = draws(2 * canvas, canvas)
    result = resize_and_pad(batch, *where, canvas, mode)
    assert result.shape == (2 * canvas, 3, canvas, canvas)
    torch.testing.assert_close(result, one_by_one(batch, *where, canvas, mode), rtol=0, atol=1e-5)


@pytest.mark.parametrize("side", [8, 28, 32, 49, 64, 96])
def test_nearest_picks_torchs_pixel_for_every_size(side):
    ramp = torch.arange(side * side, dtype=torch.float32).view(1, 1, side, side)
    for size in range(1, side + 13):
        place = torch.tensor([size]), torch.tensor([0]), torch.tensor([0])
        expected = F.interpolate(ramp, size=(size, size), mode="nearest")
        assert torch.equal(resize_and_pad(ramp, *place, size, "nearest"), expected), (side, size)


def test_images_that_are_not_square_become_square(images):
    batch = images(3, 2, 12)[:, :, :7]
    where = torch.tensor([5, 9, 10]), torch.tensor([0, 1, 0]), torch.tensor([3, 0, 0])
    expected = one_by_one(batch, *where, 10, "bilinear")
    torch.testing.assert_close(
        resize_and_pad(batch, *where, 10, "bilinear"), expected, rtol=0, atol=1e-5
    )


@pytest.mark.parametrize("mode", ["bilinear", "nearest"])
def test_the_same_size_is_the_identity(mode, images):
    batch, zero = images(4, 3, 11), torch.zeros(4, dtype=torch.int64)
    torch.testing.assert_close(
        resize_and_pad(batch, zero + 11, zero, zero, 11, mode), batch, rtol=0, atol=1e-6
    )


@pytest.mark.parametrize("mode", ["bilinear", "nearest"])
def test_gradient_is_that_of_interpolate_and_pad(mode, images):
    where = draws(20, 10)
    weights = torch.rand(20, 2, 10, 10, generator=torch.Generator().manual_seed(1))
    gradients = []
    for function in (resize_and_pad, one_by_one):
        batch = images(20, 2, 8).requires_grad_()
        gradients += torch.autograd.grad((function(batch, *where, 10, mode) * weights).sum(), batch)
    assert gradients[1].abs().max() > 0.5
    torch.testing.assert_close(*gradients, rtol=0, atol=1e-5)
