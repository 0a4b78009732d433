"""Every defense on the pretend device, forward and backward, on its own and before a classifier."""

import warnings

import pytest
import torch
from pretend_device import DEVICE, counted
from subjects import network

from robusttrain.attacks.sources.surrogates import fused
from robusttrain.config import presets
from robusttrain.config.build import build, fit_to_data
from robusttrain.core.rng import Rng
from robusttrain.data.base import Facts
from robusttrain.defenses import Chain, Defense, FixedResizePad, JPEG, GaussianNoise
from robusttrain.models.defended import DefendedClassifier

NAMES = [name for name in presets.names("defense") if name != "none"]
def preset(name):
    node = presets.read("defense", name)["defense"]
    fit_to_data(node, Facts(10, 3, 16), "defense")
    torch.manual_seed(0)
    built = build(node, "defense", ("robusttrain",), Defense)
    return built.rebuilt(lambda part: part.with_steps(2) if part.iterative else part)

@pytest.mark.parametrize("name", NAMES)
def test_d(name):
    out = []
    for device in (DEVICE, torch.device("cpu")):
        target = DefendedClassifier(preset(name), network()).eval().to(device)
        x = torch.rand(3, 3, 16, 16, generator=torch.Generator().manual_seed(0)).to(device)
        rng = Rng.for_images(0, torch.arange(3, device=device))
        target(x, rng)
        with counted() as waits:
            points = x.clone().requires_grad_()
            target(points, rng.fold(1)).square().sum().backward()
        out.append((waits, points.grad.cpu()))
    print("RES", name, sum(out[0][0].values()), "|", out[0][0].told().replace("\n", " / "))
    torch.testing.assert_close(out[0][1], out[1][1], atol=1e-5, rtol=1e-4)
