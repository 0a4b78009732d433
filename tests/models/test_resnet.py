"""CIFAR ResNets: size, strides, normalisation, and errors that name the option."""

import pytest
import torch

from robusttrain.core.errors import OptionError
from robusttrain.models import CifarResNet


def parameters(model: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def test_parameter_counts_that_the_presets_state():
    assert parameters(CifarResNet()) == 11_173_962  # He's ResNet-18 with a 3x3 stem and 10 classes
    assert parameters(CifarResNet(widths=(32, 64, 128), blocks=1)) == 308_650


def test_each_stage_after_the_first_halves_the_image():
    model = CifarResNet(widths=(4, 8, 16), blocks=2).eval()
    sizes = []
    for stage in model.stages:
        stage.register_forward_hook(
            lambda module, inputs, output: sizes.append(tuple(output.shape[1:]))
        )
    model(torch.rand(1, 3, 32, 32))
    assert sizes == [(4, 32, 32), (8, 16, 16), (16, 8, 8)]


@pytest.mark.parametrize("size", [8, 28, 33])
def test_any_size_and_channels(size):
    model = CifarResNet(num_classes=5, in_channels=2, widths=(4, 8), blocks=1).eval()
    assert (model.num_classes, model.in_channels, model.image_size) == (5, 2, None)
    assert model(torch.rand(3, 2, size, size)).shape == (3, 5)


def test_normalisation_is_inside():
    torch.manual_seed(0)
    ours = CifarResNet(widths=(4, 8), blocks=1).eval()
    raw = CifarResNet(widths=(4, 8), blocks=1, mean=(0.0,) * 3, std=(1.0,) * 3).eval()
    raw.load_state_dict(ours.state_dict())
    images = torch.rand(2, 3, 16, 16)
    torch.testing.assert_close(ours(images), raw((images - 0.5) / 0.25))


def test_a_block_adds_its_input():
    torch.manual_seed(0)
    block = CifarResNet(widths=(4,), blocks=1).eval().stages[0][0]
    torch.nn.init.zeros_(block.bn2.weight)  # the residual vanishes
    x = torch.rand(1, 4, 8, 8)
    assert torch.equal(block(x), x)


@pytest.mark.parametrize(
    ("option", "arguments"),
    [
        ("widths", {"widths": ()}),
        ("widths", {"widths": (4, 0)}),
        ("blocks", {"blocks": 0}),
        ("num_classes", {"num_classes": 0}),
        ("mean", {"mean": (0.5,)}),
        ("std", {"in_channels": 1, "std": (0.5, 0.5, 0.5)}),
    ],
)
def test_errors_name_the_option(option, arguments):
    with pytest.raises(OptionError, match=f"^{option} = "):
        CifarResNet(**arguments)


@pytest.mark.parametrize(("stride", "size"), [(1, 32), (2, 16), (4, 8)])
def test_a_stride_of_the_stem_makes_every_stage_smaller(stride, size):
    model = CifarResNet(widths=(4, 8), blocks=1, stem_stride=stride).eval()
    images = torch.rand(1, 3, 32, 32, requires_grad=True)
    assert model.stem(images).shape == (1, 4, size, size)
    model(images).sum().backward()
    assert images.grad.abs().min() > 0, "every pixel counts"
