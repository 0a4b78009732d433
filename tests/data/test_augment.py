"""Crop and flip against a loop over images, with the same draws."""

import pytest
import torch
import torch.nn.functional as F

from robusttrain.core.rng import Rng
from robusttrain.data.augment import crop_and_flip


def one_by_one(images, rng, padding, flip):
    """The same with F.pad, slices and flip, an image at a time."""
    height, width = images.shape[2:]
    offsets = rng.integers((2, 1), 0, 2 * padding + 1)
    mirrored = rng.uniform((1,)) < 0.5
    result = []
    for image, (top, left), mirror in zip(
        images, offsets[:, :, 0].tolist(), mirrored[:, 0].tolist(), strict=True
    ):
        crop = F.pad(image, [padding] * 4)[:, top : top + height, left : left + width]
        result.append(crop.flip(-1) if flip and mirror else crop)
    return torch.stack(result)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32])
@pytest.mark.parametrize("padding", [0, 1, 4])
@pytest.mark.parametrize("flip", [True, False])
@pytest.mark.parametrize("shape", [(40, 3, 8, 11), (1, 1, 5, 5)])
def test_equals_the_loop_over_images(dtype, padding, flip, shape):
    images = torch.randint(1, 256, shape, generator=torch.Generator().manual_seed(0)).to(dtype)
    indices = torch.arange(len(images)) * 3
    result = crop_and_flip(images, Rng.for_images(5, indices), padding, flip)
    assert result.dtype == dtype
    assert torch.equal(result, one_by_one(images, Rng.for_images(5, indices), padding, flip))


def test_channels_last_gives_the_same():
    images = torch.randint(0, 256, (9, 3, 6, 6), generator=torch.Generator().manual_seed(0)).to(
        torch.uint8
    )
    results = [
        crop_and_flip(
            images.contiguous(memory_format=layout), Rng.for_images(0, torch.arange(9)), 2, True
        )
        for layout in (torch.contiguous_format, torch.channels_last)
    ]
    assert torch.equal(*results)


def test_every_offset_and_both_directions_occur():
    """One pixel in the middle of each image: it lands everywhere within the padding, half of the
    time mirrored.
    """
    images = torch.zeros(4000, 1, 5, 5, dtype=torch.uint8)
    images[:, :, 2, 2] = 1
    images[:, :, 2, 1] = 2
    result = crop_and_flip(images, Rng.for_images(0, torch.arange(4000)), 1, True)
    where = (result == 1).flatten(1).long().argmax(1).bincount(minlength=25)
    assert set(where.nonzero()[:, 0].tolist()) == {6, 7, 8, 11, 12, 13, 16, 17, 18}
    assert (where[where > 0] - 4000 / 9).abs().max() < 80  # four standard deviations
    mirrored = (result == 2).flatten(1).long().argmax(1) > (result == 1).flatten(1).long().argmax(1)
    assert abs(mirrored.sum().item() - 2000) < 130


def test_an_image_is_augmented_alike_whatever_else_is_in_the_batch():
    images = torch.randint(0, 256, (12, 3, 8, 8), generator=torch.Generator().manual_seed(0)).to(
        torch.uint8
    )
    indices = torch.arange(100, 112)
    together = crop_and_flip(images, Rng.for_images(1, indices), 2, True)
    some = torch.tensor([7, 0, 3])
    assert torch.equal(
        crop_and_flip(images[some], Rng.for_images(1, indices[some]), 2, True), together[some]
    )


def test_nothing_to_do_leaves_the_images():
    images = torch.rand(2, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    assert crop_and_flip(images, Rng.for_images(0, torch.arange(2)), 0, False) is images
