"""Convolutions with fewer multiplications: their values, gradients, and where they stand."""

from __future__ import annotations

import platform

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from robusttrain import fast_copy
from robusttrain.models import CifarResNet, VGGSmall
from robusttrain.models import winograd as module
from robusttrain.models.nearby import remembering
from robusttrain.models.twin import Twin
from robusttrain.models.winograd import Winograd, plain_convolutions, use_winograd

#: Of the largest number; float32 has 6e-8 to each, the transforms multiply that.
TOLERANCE = 5e-5
SHAPES = [(4, 4), (8, 8), (5, 7), (1, 9), (16, 3)]


@pytest.fixture(autouse=True)
def _here(monkeypatch: pytest.MonkeyPatch) -> None:
    """On other processors it is not used, and right all the same."""
    monkeypatch.setattr(platform, "machine", lambda: "x86_64")


def layer(inputs: int = 5, outputs: int = 7, bias: bool = True) -> nn.Conv2d:
    """A convolution that takes fewer multiplications."""
    torch.manual_seed(0)
    convolution = nn.Conv2d(inputs, outputs, 3, padding=1, bias=bias).requires_grad_(False)
    convolution._conv_forward = Winograd(fewest=1, least=1)  # type: ignore[assignment]
    return convolution


def close(actual: Tensor, expected: Tensor) -> bool:
    """Up to `TOLERANCE` of the largest number."""
    return bool((actual - expected).abs().max() <= TOLERANCE * expected.abs().max())


def exact(convolution: nn.Conv2d, images: Tensor) -> Tensor:
    """The convolution by its definition, in float64."""
    bias = None if convolution.bias is None else convolution.bias.double()
    return F.conv2d(images.double(), convolution.weight.double(), bias, padding=1)


@pytest.mark.parametrize("size", SHAPES)
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("layout", [torch.channels_last, torch.contiguous_format])
def test_values_are_those_of_the_convolution(
    size: tuple[int, int], bias: bool, layout: torch.memory_format
) -> None:
    convolution, images = layer(bias=bias), torch.randn(3, 5, *size).to(memory_format=layout)

    assert close(convolution(images), exact(convolution, images))


def test_more_tiles_than_are_computed_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    convolution, images = layer(), torch.randn(7, 5, 8, 8)
    monkeypatch.setattr(module, "AT_ONCE", 9)  # two images, and one is left

    assert close(convolution(images), exact(convolution, images))


@pytest.mark.parametrize("size", SHAPES)
def test_gradients_are_those_of_the_convolution(size: tuple[int, int]) -> None:
    convolution, images = layer(), torch.randn(3, 5, *size)
    weighting = torch.randn(3, 7, *size)

    def gradient(call: object, points: Tensor) -> Tensor:
        points = points.clone().requires_grad_()
        loss = (call(points) * weighting.to(points.dtype)).sum()  # type: ignore[operator]
        return torch.autograd.grad(loss, points)[0]

    expected = gradient(lambda points: exact(convolution, points), images.double())
    assert close(gradient(convolution, images), expected)


def test_gradients_of_gradients() -> None:
    """Second derivatives, as attacks through unrolled steps need them."""
    convolution, images = layer(), torch.randn(2, 5, 8, 8)

    def second(call: object, points: Tensor) -> Tensor:
        points = points.clone().requires_grad_()
        loss = call(points).pow(3).sum()  # type: ignore[operator]
        (first,) = torch.autograd.grad(loss, points, create_graph=True)
        return torch.autograd.grad(first.pow(2).sum(), points)[0]

    expected = second(lambda points: exact(convolution, points), images.double())
    assert close(second(convolution, images), expected)


def test_new_weights_are_followed() -> None:
    convolution, images = layer(), torch.randn(3, 5, 8, 8)
    convolution(images)
    with torch.no_grad():
        convolution.weight.mul_(-2).add_(0.1)

    assert close(convolution(images), exact(convolution, images))


def wide() -> nn.Module:
    """A network with wide layers, one of which has a stride."""
    torch.manual_seed(0)
    return CifarResNet(num_classes=4, widths=(8, 192), blocks=1).eval()


def taken(network: nn.Module) -> list[str]:
    """Names of the layers that take fewer multiplications."""
    return [
        name
        for name, part in network.named_modules()
        if isinstance(getattr(part, "_conv_forward", None), Winograd)
    ]


def test_fast_copies_take_it_for_wide_layers_alone() -> None:
    model = wide()
    copy, narrow = fast_copy(model), fast_copy(VGGSmall(width=16))

    (name,) = taken(copy)
    part = copy.get_submodule(name)
    assert isinstance(part, nn.Conv2d)
    assert (part.in_channels, part.out_channels, part.stride) == (192, 192, (1, 1))
    assert taken(narrow) == taken(model) == []
    assert taken(fast_copy(model, torch.bfloat16)) == []
    assert taken(fast_copy(model.double())) == []


def test_a_fast_copy_answers_and_differentiates_as_the_model(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model, images = wide(), torch.rand(20, 3, 16, 16)
    copy, calls = fast_copy(model), []
    convolved = module._convolved
    monkeypatch.setattr(module, "_convolved", lambda *given: calls.append(1) or convolved(*given))

    def gradient(network: nn.Module) -> Tensor:
        points = images.clone().requires_grad_()
        loss = F.cross_entropy(network(points), torch.arange(20) % 4, reduction="sum")
        return torch.autograd.grad(loss, points)[0]

    ours = gradient(copy)
    assert len(calls) == 2  # forward and backward
    assert torch.allclose(copy(images), model(images), atol=1e-4)
    assert F.cosine_similarity(ours.flatten(1), gradient(model).flatten(1)).min() > 0.9999
    with plain_convolutions():
        calls.clear()
        gradient(copy)
    copy(images[:0])
    copy(images[..., :8, :8])  # one tile of an image: too little to save
    with torch.autocast("cpu", torch.bfloat16):
        copy(images)
    assert calls == []


def test_few_tiles_and_trained_weights_stay_with_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> Tensor:
        raise AssertionError("computed with fewer multiplications")

    monkeypatch.setattr(module, "_convolved", refuse)
    convolution = layer()
    convolution._conv_forward = Winograd(fewest=16, least=1)  # type: ignore[assignment]
    convolution(torch.rand(3, 5, 8, 8))  # twelve tiles
    with pytest.raises(AssertionError, match="fewer"):
        convolution(torch.rand(4, 5, 8, 8))
    convolution.requires_grad_()
    convolution(torch.rand(4, 5, 8, 8)).sum().backward()

    assert convolution.weight.grad is not None


@pytest.mark.parametrize(
    "options",
    [
        {"stride": 2, "padding": 1},
        {"padding": 0},
        {"padding": 2, "dilation": 2},
        {"padding": 1, "groups": 2},
        {"padding": 1, "padding_mode": "reflect"},
    ],
)
def test_other_convolutions_are_left_alone(options: dict[str, object]) -> None:
    network = nn.Sequential(nn.Conv2d(192, 192, 3, **options))  # type: ignore[arg-type]
    use_winograd(network)

    assert taken(network) == []


def test_elsewhere_nothing_is_changed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(platform, "machine", lambda: "arm64")

    assert taken(fast_copy(wide())) == []


def test_a_twin_in_training_follows() -> None:
    model, images = wide(), torch.rand(8, 3, 16, 16)
    twin = Twin(model, torch.float32)
    twin.refresh(model)(images)
    with torch.no_grad():
        for weight in model.parameters():
            weight.mul_(1.1)

    assert torch.allclose(twin.refresh(model)(images), model(images), atol=1e-4)


def test_a_search_that_remembers_computes_the_same() -> None:
    """What a square leaves as it was is read off layers that are of their old type."""
    model = wide()
    copy, images = fast_copy(model), torch.rand(8, 3, 16, 16)
    moved = images.clone()
    moved[:, :, 4:6, 4:6] = 0
    with torch.no_grad(), remembering():
        copy(images)
        found = copy(moved)

    assert torch.allclose(found, model(moved), atol=1e-4)
