"""SuperDeepFool: exact on affine models and near it on an ellipse, where DeepFool is not."""

import pytest
import torch
from torch import Tensor, nn

from robusttrain.attacks import L2, DeepFool, Linf, SuperDeepFool
from robusttrain.core.errors import OptionError

WIDE = L2(50.0)


def right(model, images):
    return model(images).argmax(1)


def test_an_affine_model_takes_one_projection_to_its_nearest_boundary(linear, images, streams):
    """There DeepFool is exact but for its overshoot, which the bisection takes back."""
    model, x = linear(classes=6, seed=3), images(16)
    model.bias.data -= model.weight.data.sum(1) / 2  # the boundaries come near the grey image
    model.double()
    y = right(model, x.double())
    z, w = model(x.double()).detach(), model.weight.detach()
    away = (z - z.gather(1, y[:, None])).abs() / (w - w[y][:, None]).norm(dim=2)
    nearest = away.scatter(1, y[:, None], torch.inf).amin(1)
    found = SuperDeepFool(search=30, threat=WIDE)(model, x.double(), y, streams(16))
    torch.testing.assert_close(WIDE.distance(found, x.double()), nearest, rtol=1e-6, atol=0)
    assert (right(model, found) != y).all()


class Ellipse(nn.Module):
    """Images of two pixels; class 1 lies outside an ellipse with half-axes 0.4 and 0.2."""

    AXES = torch.tensor([0.4, 0.2], dtype=torch.float64)

    def forward(self, images: Tensor) -> Tensor:
        outside = ((images.flatten(1) - 0.5) / self.AXES).square().sum(1) - 1
        return torch.stack([torch.zeros_like(outside), outside], dim=1)


def test_the_nearest_point_of_an_ellipse_that_deepfool_misses(streams):
    """The answer by trying a million points of the boundary. DeepFool goes the way of the steepest
    ascent, which is not the shortest.
    """
    rng = torch.Generator().manual_seed(0)
    inside = torch.rand(64, 2, generator=rng, dtype=torch.float64) * 0.5 - 0.25
    x = (0.5 + inside * Ellipse.AXES).view(64, 1, 1, 2)
    angle = torch.linspace(0, 2 * torch.pi, 1_000_001, dtype=torch.float64)
    boundary = 0.5 + torch.stack([angle.cos(), angle.sin()], 1) * Ellipse.AXES
    nearest = torch.stack([(boundary - each.flatten()).norm(dim=1).min() for each in x])
    y = torch.zeros(64, dtype=torch.int64)
    found = SuperDeepFool(search=30, threat=WIDE)(Ellipse(), x, y, streams(64))
    plain = DeepFool(threat=WIDE)(Ellipse(), x, y, streams(64))
    far, plain_far = (WIDE.distance(each, x) / nearest for each in (found, plain))
    assert (Ellipse()(found).argmax(1) == 1).all()
    assert far.min() > 1 - 1e-6
    assert far.median() < 1.005
    assert plain_far.median() > 2


def test_it_ends_no_farther_than_deepfool(patterns, streams):
    model, x, y = patterns[0], patterns[1][:32], patterns[2][:32]
    found = SuperDeepFool(threat=WIDE)(model, x, y, streams(32))
    plain = DeepFool(overshoot=0.0, threat=WIDE)(model, x, y, streams(32))
    near, far = WIDE.distance(found, x), WIDE.distance(plain, x)
    moved = far > 0
    assert moved.sum() > 20
    assert (right(model, found) != y)[moved].all()
    assert (near <= far + 1e-5).all()
    assert (near < far - 1e-4).any()


def test_the_bisection_brings_it_to_the_boundary(patterns, streams):
    """2^-10 of the way back to the image, it is right again."""
    model, x, y = patterns[0], patterns[1][:16], patterns[2][:16]
    found = SuperDeepFool(threat=WIDE)(model, x, y, streams(16))
    moved = (found != x).flatten(1).any(1)
    coarse = SuperDeepFool(search=0, threat=WIDE)(model, x, y, streams(16))
    back = found - (coarse - x) * 2.0**-9
    assert moved.any()
    assert (right(model, back) == y)[moved].all()


def test_what_is_too_far_is_projected(linear, images, streams):
    model, x = linear(classes=2), images(8)
    y = right(model, x)
    free = SuperDeepFool(threat=WIDE)(model, x, y, streams(8))
    threat = L2(WIDE.distance(free, x).median().item())
    found = SuperDeepFool(threat=threat)(model, x, y, streams(8))
    near = WIDE.distance(free, x) <= threat.epsilon
    assert 0 < near.sum() < 8
    assert torch.equal(found[near], free[near])
    assert (threat.distance(found, x) <= threat.epsilon + 1e-6).all()


def test_an_image_that_is_wrong_already_comes_back_as_it_was(curved, images, streams):
    model, x = curved(), images(8)
    y = right(model, x)
    y[::2] = (y[::2] + 1) % 4
    found = SuperDeepFool(threat=WIDE)(model, x, y, streams(8))
    assert torch.equal(found[::2], x[::2])
    assert (WIDE.distance(found, x)[1::2] > 0).all()


def test_it_never_asks_more_than_it_says_and_a_batch_is_as_its_images_alone(
    patterns, counting, streams
):
    model, x, y = counting(patterns[0]), patterns[1][:8], patterns[2][:8]
    whole = SuperDeepFool(threat=WIDE)(model, x, y, streams(8))
    limit = SuperDeepFool().cost()
    for i in (6, 0):
        model.gradients = model.queries = 0
        alone = SuperDeepFool(threat=WIDE)(model, x[i : i + 1], y[i : i + 1], streams(8)[i : i + 1])
        # A bisection turns rounding into a 2^-10 of the way.
        torch.testing.assert_close(alone, whole[i : i + 1], rtol=0, atol=1e-3)
        assert 0 < model.gradients <= limit.gradients
        assert model.queries <= limit.queries


def test_most_draws_of_a_random_model_are_wrong(random_linear, images, streams):
    model, x = random_linear(4), images(16)
    y = model(x, streams(16, seed=9)).argmax(1)
    found = SuperDeepFool(threat=WIDE)(model, x, y, streams(16))
    draws = torch.stack([model(found, streams(16, seed=50 + i)).argmax(1) for i in range(60)])
    assert ((draws != y).double().mean(0) > 0.5).double().mean() > 0.8


def test_the_norm_is_l2():
    with pytest.raises(OptionError, match="must be L2"):
        SuperDeepFool(threat=Linf(0.1))
    with pytest.raises(OptionError, match="classes"):
        SuperDeepFool(classes=1)
