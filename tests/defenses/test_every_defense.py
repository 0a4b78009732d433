"""What holds for every defense preset: its traits, and draws that belong to the image."""

import pytest
import torch
from torch import nn

from robusttrain.config import presets
from robusttrain.config.build import build, fit_to_data
from robusttrain.core.rng import Rng
from robusttrain.data.base import Facts
from robusttrain.defenses import Defense
from robusttrain.models.defended import DefendedClassifier

NAMES = [name for name in presets.names("defense") if name != "none"]


def smooth_classifier():
    """A classifier of three channels, for defenses that ask one."""
    torch.manual_seed(1)
    layers = nn.Conv2d(3, 8, 3), nn.Tanh(), nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(32, 3)
    return nn.Sequential(*layers).eval()


@pytest.fixture(scope="module", params=NAMES)
def defense(request):
    """The preset's defense, fitted to CIFAR-10; a search has two steps."""
    node = presets.read("defense", request.param)["defense"]
    fit_to_data(node, Facts(10, 3, 32), "defense")
    torch.manual_seed(0)
    built = build(node, "defense", ("robusttrain",), Defense)
    fewer = built.rebuilt(lambda part: part.with_steps(2) if part.iterative else part)
    return fewer.bound_to(smooth_classifier()).eval()


@pytest.fixture
def x(images):
    return images(3, 3, 32)


def test_the_same_streams_give_the_same_images_and_other_streams_others(defense, x, streams):
    whole = defense(x, streams(3))
    assert torch.equal(defense(x, streams(3)), whole)
    assert torch.equal(defense(x, streams(3, seed=1)), whole) != defense.random


def test_what_becomes_of_an_image_does_not_depend_on_its_batch(defense, x, streams):
    whole, order = defense(x, streams(3)), torch.tensor([2, 0])
    alone = defense(x[order], streams(3)[order])
    # Adversarial transformations: a gradient of almost zero may change its sign.
    assert ((alone - whole[order]).abs() < 1e-5).double().mean() > 0.99


def test_the_size_is_what_its_trait_says(defense, x, streams):
    assert (defense(x, streams(3)).shape == x.shape) == defense.keeps_size(x)
    assert len(defense(x[:0], streams(0))) == 0


def test_a_gradient_arrives(defense, x, streams):
    """Where a derivative is declared it is the defense's own, and elsewhere the identity."""
    points = x.clone().requires_grad_()
    result = defense(points, streams(3))
    (gradient,) = torch.autograd.grad(result.square().sum() / 2, points)
    assert gradient.isfinite().all()
    assert (gradient != 0).flatten(1).any(dim=1).all()
    if not any(part.differentiable for part in defense.parts):
        torch.testing.assert_close(gradient, result.detach())


def test_the_declared_derivative_is_the_true_one(defense, x, streams):
    """Along the gradient, against a central difference."""
    if not defense.differentiable:
        pytest.skip("declares none")

    def value(points):
        return defense(points, streams(3)).double().square().sum() / 2

    points = x.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(value(points), points)
    step = 1e-3 * gradient / gradient.abs().max()
    found = (value(x + step) - value(x - step)) / 2
    torch.testing.assert_close(found, (gradient * step).sum().double(), rtol=0.03, atol=0)


def test_the_type_and_one_channel(defense, images, streams):
    if defense.has_f_b or defense.asks_classifier or any(part.trained_by for part in defense.parts):
        pytest.skip("its network takes three channels")
    grey = images(2, 1, 32)
    result = defense(grey, streams(2))
    assert result.shape[:2] == (2, 1)
    torch.testing.assert_close(defense(grey.double(), streams(2)).float(), result)


def test_behind_a_classifier_it_is_a_plain_module(defense, x, convnet):
    target = DefendedClassifier(defense, convnet()).eval()
    assert target.random == defense.random
    torch.manual_seed(1)
    first = target(x)
    torch.manual_seed(1)
    assert torch.equal(target(x), first)
    assert first.shape == (3, 3)


def test_twins_are_differentiable_and_draw_from_the_same_streams(defense, x):
    for part in defense.parts:
        if (twin := part.twin()) is not None:
            assert twin.differentiable
            assert twin.twin() is None
            rng = Rng.for_images(0, torch.arange(3))
            assert twin(x, rng).shape == part(x, rng).shape
