"""Every defense on the pretend device: forward and backward, and what the host waits for."""

import inspect

import pytest
import torch
from pretend_device import DEVICE
from subjects import network
from waits import REAL, agree, counted

import robusttrain.defenses as package
from robusttrain.config import presets
from robusttrain.config.build import build, fit_to_data
from robusttrain.core.rng import Rng
from robusttrain.data.base import Facts
from robusttrain.defenses import (
    JPEG,
    BitDepth,
    Chain,
    Defense,
    DifferentiableJPEG,
    FixedResizePad,
    GaussianNoise,
    TotalVariation,
    Vote,
)
from robusttrain.models.defended import DefendedClassifier

#: The real encoder is on the host: pixels go there, and come back.
ENCODER = {"download": 1, "upload": 1}
#: Of one forward and one backward pass; every other defense has none.
WAITS = {"jpeg": ENCODER, "A CHAIN": ENCODER}
#: What no preset has.
MORE = {
    "TWIN": DifferentiableJPEG,
    "PATTERN": lambda: FixedResizePad(18, 16),
    "A CHAIN": lambda: Chain([JPEG(), Vote(GaussianNoise(0.1), draws=2), BitDepth()]),
}
NAMES = [*(set(presets.names("defense")) - {"none"}), *MORE]


def defense(name):
    """The preset's defense, fitted to small images; loops have two steps."""
    if name in MORE:
        return MORE[name]()
    node = presets.read("defense", name)["defense"]
    fit_to_data(node, Facts(10, 3, 16), "defense")
    torch.manual_seed(0)
    built = build(node, "defense", ("robusttrain",), Defense)

    def few(part):
        if isinstance(part, TotalVariation):
            return TotalVariation(steps=4)
        return part.with_steps(2) if part.iterative else part

    return built.rebuilt(few)


def passed(name, device):
    """Logits of images behind the defense, and the gradient through all of it."""
    target = DefendedClassifier(defense(name), network()).eval().to(device)
    x = torch.rand(3, 3, 16, 16, generator=torch.Generator().manual_seed(0)).to(device)
    rng = Rng.for_images(0, torch.arange(3, device=device))
    target(x, rng.fold(0))  # the first pass makes copies that are folded
    with counted() as waits:
        points = x.clone().requires_grad_()
        logits = target(points, rng.fold(1))
        logits.square().sum().backward()
    assert logits.device == points.grad.device == torch.device(device)
    return waits, logits.detach().cpu(), points.grad.cpu()


@pytest.mark.parametrize("name", sorted(NAMES))
def test_it_stays_on_the_device(name):
    waits, *found = passed(name, DEVICE)
    expected = WAITS.get(name, {})
    assert agree(waits.total(), sum(expected.values())), waits.told()
    assert REAL or dict(waits) == expected, waits.told()
    for one, other in zip(found, passed(name, "cpu")[1:], strict=True):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-4)


def test_every_defense_is_among_them():
    public = {
        each
        for each in vars(package).values()
        if inspect.isclass(each) and issubclass(each, Defense) and not inspect.isabstract(each)
    }
    parts = {type(part) for name in NAMES for part in defense(name).parts}
    assert public - parts - {type(defense(name)) for name in NAMES} == set()
