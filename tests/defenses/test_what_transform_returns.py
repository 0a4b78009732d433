"""What a defense's transform returns is the defense's fault, and told as that."""

import warnings

import pytest
import torch

import robusttrain
from robusttrain.core.errors import UserError
from robusttrain.defenses import Defense, GaussianNoise


class Returns(Defense):
    """Whatever a function makes of the images."""

    def __init__(self, made):
        super().__init__()
        self.made = made

    def transform(self, images, rng):
        return self.made(images)


def evaluated(defense, folder):
    generator = torch.Generator().manual_seed(0)
    images, labels = torch.rand(8, 1, 4, 4, generator=generator), torch.arange(8) % 3
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        robusttrain.evaluate(
            lambda points: points.flatten(1)[:, :3],
            images,
            labels,
            defense=defense,
            attacks="fgsm",
            output=folder,
            audit=False,
            progress=False,
        )
    return [str(each.message) for each in caught if "transform hands on" in str(each.message)]


@pytest.mark.parametrize(
    ("made", "told"),
    [
        (lambda images: images.detach().numpy(), "transform returned numpy.ndarray, not a tensor"),
        (lambda images: None, "transform returned NoneType, not a tensor"),
        (lambda images: (images, images), "transform returned tuple, not a tensor"),
        (lambda images: images.flatten(1), r"transform returned a tensor \(1, 16\), not images"),
    ],
)
def test_a_transform_that_returns_no_images_is_named(made, told, tmp_path):
    with pytest.raises(UserError, match=f"defense Returns: {told}") as caught:
        evaluated(Returns(made), tmp_path)
    assert "the model" not in str(caught.value)


def test_values_far_from_images_are_said_once_with_their_range(tmp_path):
    def stretched(images):
        return 255 * (10 * images - 4.5).clamp(0, 1)

    (line,) = evaluated(Returns(stretched), tmp_path)
    assert "defense Returns: transform hands on values in [0, 255], far from [0, 1]" in line


@pytest.mark.parametrize(
    "defense", [GaussianNoise(0.1), Returns(lambda images: images), Returns(lambda x: 2 * x - 0.5)]
)
def test_noise_may_leave_the_range_of_images(defense, tmp_path):
    assert not evaluated(defense, tmp_path)
