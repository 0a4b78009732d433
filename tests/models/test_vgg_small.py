"""The small VGG: the released file's names and shapes, image sizes, no normalisation."""

import pytest
import torch

from robusttrain.core.errors import OptionError
from robusttrain.models import VGGSmall

# Positions, inputs and outputs of the convolutions and linear layers in the authors' file.
CONVOLUTIONS = {0: (3, 64), 4: (64, 128), 8: (128, 64), 11: (64, 64), 15: (64, 128), 18: (128, 128)}
LINEAR = {1: (512, 512), 4: (512, 512), 6: (512, 10)}


def released_shapes() -> dict[str, tuple[int, ...]]:
    shapes: dict[str, tuple[int, ...]] = {}
    for index, (inputs, outputs) in CONVOLUTIONS.items():
        shapes[f"features.{index}.weight"] = (outputs, inputs, 3, 3)
        shapes[f"features.{index}.bias"] = (outputs,)
        shapes |= {
            f"features.{index + 1}.{name}": (outputs,)
            for name in ("weight", "bias", "running_mean", "running_var")
        }
        shapes[f"features.{index + 1}.num_batches_tracked"] = ()
    for index, (inputs, outputs) in LINEAR.items():
        shapes[f"classifier.{index}.weight"], shapes[f"classifier.{index}.bias"] = (
            (outputs, inputs),
            (outputs,),
        )
    return shapes


def test_names_and_shapes_are_those_of_the_released_file():
    assert {
        name: tuple(tensor.shape) for name, tensor in VGGSmall().state_dict().items()
    } == released_shapes()


@pytest.mark.parametrize(("classes", "channels", "size"), [(10, 3, 32), (7, 1, 16), (2, 4, 48)])
def test_shapes_and_attributes(classes, channels, size):
    model = VGGSmall(num_classes=classes, in_channels=channels, image_size=size).eval()
    assert (model.num_classes, model.in_channels, model.image_size) == (classes, channels, size)
    assert model(torch.rand(2, channels, size, size)).shape == (2, classes)


def test_logits_are_those_of_the_layers_in_order_on_images_as_they_are():
    torch.manual_seed(0)
    model = VGGSmall().eval()
    images = torch.rand(2, 3, 32, 32)
    x = images
    for index in CONVOLUTIONS:
        x = model.features[index + 1](
            torch.conv2d(x, *model.features[index].parameters(), padding=1)
        ).relu()
        if index not in (8, 15):
            x = torch.max_pool2d(x, 2)
    x = x.flatten(1)
    for index in LINEAR:
        x = torch.nn.functional.linear(x, *model.classifier[index].parameters())
        x = x.relu() if index != 6 else x
    torch.testing.assert_close(model(images), x)


@pytest.mark.parametrize("size", [0, 8, 28, 33])
def test_size_that_is_no_multiple_of_16(size):
    with pytest.raises(OptionError, match=f"^image_size = {size}: must be a multiple of 16"):
        VGGSmall(image_size=size)
