"""Attacks differentiate a copy of the model only where it answers as the model does."""

import copy

import pytest
import torch
from torch import nn

import robusttrain
from robusttrain.attacks import Linf
from robusttrain.core.rng import Rng
from robusttrain.defenses import BitDepth
from robusttrain.evaluation.fitting import check_copy
from robusttrain.models import CifarResNet
from robusttrain.models.defended import DefendedClassifier

pytestmark = pytest.mark.filterwarnings("ignore")


class Linear(nn.Module):
    """Tells four images of noise apart."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(192, 4)
        centres = patterns().flatten(1)
        with torch.no_grad():
            self.layer.weight.copy_(centres)
            self.layer.bias.copy_(-0.5 * (centres**2).sum(1))

    def forward(self, images):
        return self.layer(images.flatten(1))


def patterns():
    return torch.rand(4, 3, 8, 8, generator=torch.Generator().manual_seed(0))


class Held(nn.Module):
    """Its hook reads what its forward pass has set, on the model that it was made for."""

    def __init__(self):
        super().__init__()
        self.inner, self.light = Linear(), None
        self.inner.layer.register_forward_hook(
            lambda module, inputs, out: out if self.light is None else (out * self.light).roll(2, 1)
        )

    def forward(self, images):
        self.light = 1 + 0 * images.mean()
        out = self.inner(images)
        self.light = None
        return out.roll(2, 1)


class Fourier(nn.Module):
    """A filter with complex weights, which shifts by half an image, and back."""

    def __init__(self):
        super().__init__()
        shift = torch.zeros(8, 8)
        shift[3, 2] = 1
        self.inner, self.filter = Linear(), nn.Parameter(torch.fft.fft2(shift))

    def forward(self, images):
        shifted = torch.fft.ifft2(torch.fft.fft2(images) * self.filter).real
        return self.inner(shifted.roll((-3, -2), (2, 3)))


class Strided(nn.Module):
    """Reads contiguous images by their strides."""

    def __init__(self):
        super().__init__()
        self.inner = Linear()

    def forward(self, images):
        size = (len(images), 192)
        return self.inner(images.as_strided(size, (192, 1)).view(-1, 3, 8, 8))


MODELS = {"plain": Linear, "hook": Held, "complex": Fourier, "strided": Strided}


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("defense", [None, BitDepth(8)], ids=["bare", "defended"])
def test_a_model_whose_copy_is_another_function_is_attacked_itself(name, defense):
    """All four are the same function, and as weak."""
    model, labels = MODELS[name](), torch.arange(32) % 4
    noise = torch.rand(32, 3, 8, 8, generator=torch.Generator().manual_seed(1))
    images = (0.25 * noise + 0.75 * patterns()[labels]).clamp(0, 1)
    torch.testing.assert_close(model(images), Linear()(images), rtol=1e-4, atol=1e-4)
    settings = {"threat": Linf(0.3), "audit": False, "progress": False, "precision": "float32"}
    if defense is not None:
        settings["defense"] = defense
    attacks = ["apgd-ce"] if defense is None else ["bpda-i-apgd"]
    before = copy.deepcopy(model.state_dict())
    results = robusttrain.evaluate(model, images, labels, attacks=attacks, **settings)
    assert results.clean.accuracy == 1
    assert results.worst_case.accuracy < 0.1
    assert all(map(torch.equal, before.values(), model.state_dict().values()))


def test_the_line_says_it_where_there_is_something_to_say():
    images, said = patterns(), []
    rng = Rng.for_images(0, torch.arange(4))
    network = CifarResNet(widths=[4, 8], blocks=1).eval()
    for model in (network, Linear(), copy.deepcopy(network).double()):
        check_copy(
            DefendedClassifier.of(model),
            images.to(next(model.parameters()).dtype),
            rng,
            said.append,
        )
    assert said == []
    check_copy(DefendedClassifier.of(Held()), images, rng, said.append)
    (line,) = said
    assert "answers otherwise" in line
    assert "the model itself" in line
