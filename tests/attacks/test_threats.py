"""Threats: projections in closed form, random starts, and distances."""

from dataclasses import replace

import pytest
import torch

from robusttrain.attacks import L2, RMSD, Linf, ProjectedGradient, Threat
from robusttrain.attacks.parts.threats import into_ball
from robusttrain.core.errors import OptionError
from robusttrain.core.rng import Rng

THREATS = [
    Linf(0.1),
    L2(0.5),
    RMSD(0.05),
    Linf(0.1, clip=False),
    L2(0.5, clip=False),
    RMSD(0.05, clip=False),
]


def anywhere(images, spread: float = 0.5):
    """Points around the images, some far outside the ball, some inside."""
    noise = torch.randn(images.shape, generator=torch.Generator().manual_seed(1))
    return images + noise * torch.logspace(-3, 0, len(images)).view(-1, 1, 1, 1) * spread


def extreme(images):
    """Images with most pixels at the bounds of the box."""
    return ((images(8) - 0.5) * 2 + 0.5).clamp(0, 1)


@pytest.mark.parametrize("threat", THREATS, ids=str)
def test_projection_ends_in_the_ball_and_the_box_and_is_idempotent(threat, images):
    x = extreme(images)
    points = anywhere(x)
    projected = threat.project(points, x)
    assert threat.distance(projected, x).max() <= threat.epsilon + 1e-6
    if threat.norm == "linf" or not threat.clip:  # clipping shortens a Euclidean change
        assert threat.distance(projected, x).max() > threat.epsilon - 1e-6
    torch.testing.assert_close(threat.project(projected, x), projected, rtol=0, atol=1e-6)
    inside = projected.min() >= 0 and projected.max() <= 1
    assert inside == threat.clip
    assert torch.equal(x, extreme(images))
    assert torch.equal(points, anywhere(x))


def test_linf_projection_in_closed_form(images):
    x = images(8)
    points = anywhere(x)
    torch.testing.assert_close(
        Linf(0.1).project(points, x), points.clamp(x - 0.1, x + 0.1), rtol=0, atol=1e-6
    )


def test_l2_projection_in_closed_form(images):
    x = images(8)
    points = anywhere(x)
    expected = points.clone()
    for number in range(8):
        change = points[number] - x[number]
        if change.norm() > 0.5:
            expected[number] = x[number] + 0.5 * change / change.norm()
    assert 0 < ((points - x).flatten(1).norm(dim=1) > 0.5).sum() < 8
    torch.testing.assert_close(L2(0.5, clip=False).project(points, x), expected, rtol=0, atol=1e-6)
    torch.testing.assert_close(L2(0.5).project(points, x), expected.clamp(0, 1), rtol=0, atol=1e-6)


@pytest.mark.parametrize("threat", [Linf(0), L2(0), RMSD(0)], ids=str)
def test_a_ball_of_radius_zero_is_the_image(threat, images, streams):
    x = images(8)
    assert torch.equal(threat.project(anywhere(x), x), x)
    assert torch.equal(threat.project(x, x), x)
    assert torch.equal(threat.random_start(x, streams(8)), x)


@pytest.mark.parametrize("threat", THREATS, ids=str)
def test_random_starts_fill_the_ball(threat, images, streams):
    x = extreme(images)
    starts = threat.random_start(x, streams(8))
    assert threat.distance(starts, x).max() <= threat.epsilon + 1e-6
    assert (threat.distance(starts, x) > 0.5 * threat.epsilon).all()
    if threat.clip:
        assert starts.min() >= 0
        assert starts.max() <= 1
    order = torch.tensor([6, 2])
    assert torch.equal(threat.random_start(x[order], streams(8)[order]), starts[order])
    assert not torch.equal(threat.random_start(x, streams(8, seed=1)), starts)


def test_linf_random_start_is_uniform(images, streams):
    x = images(8, 3, 32)
    change = ((Linf(0.1).random_start(x, streams(8)) - x) / 0.1).flatten()
    assert abs(change.mean()) < 5 * (1 / 3 / len(change)) ** 0.5
    assert abs(change.var() - 1 / 3) < 5 * (4 / 45 / len(change)) ** 0.5


def test_l2_random_start_is_uniform_in_the_ball():
    """In three dimensions the share of the ball within r is r^3, and directions have no
    preference.
    """
    x = torch.full((4000, 3, 1, 1), 0.5)
    change = L2(0.4).random_start(x, Rng.for_images(0, torch.arange(4000))) - x
    share = (change.flatten(1).norm(dim=1) / 0.4) ** 3
    empirical = (torch.arange(4000) + 0.5) / 4000
    assert (share.sort().values - empirical).abs().max() < 2 / 4000**0.5  # Kolmogorov and Smirnov
    directions = change.flatten(1) / change.flatten(1).norm(dim=1, keepdim=True)
    assert directions.mean(0).abs().max() < 5 * (1 / 3 / 4000) ** 0.5


def test_distances_by_hand():
    x = torch.zeros(2, 1, 2, 2)
    moved = torch.tensor([[[[0.3, -0.4], [0, 0]]], [[[0, 0], [0, 0.1]]]])
    torch.testing.assert_close(Linf(1).distance(moved, x), torch.tensor([0.4, 0.1]))
    torch.testing.assert_close(L2(1).distance(moved, x), torch.tensor([0.5, 0.1]))


def test_norms_are_named():
    assert (Linf().norm, L2().norm) == ("linf", "l2")


@pytest.mark.parametrize("threat", [Linf, L2])
@pytest.mark.parametrize("epsilon", [-0.1, float("nan"), float("inf")])
def test_impossible_radii_are_named(threat, epsilon):
    with pytest.raises(OptionError, match=r"^epsilon = "):
        threat(epsilon)


def test_rmsd_is_l2_in_units_that_do_not_depend_on_the_size(images, streams):
    for side in (4, 8):
        x = images(8, side=side)
        radius = 0.05 * (3 * side * side) ** 0.5
        points = anywhere(x)
        torch.testing.assert_close(RMSD(0.05).project(points, x), L2(radius).project(points, x))
        torch.testing.assert_close(
            RMSD(0.05).random_start(x, streams(8)), L2(radius).random_start(x, streams(8))
        )
        torch.testing.assert_close(RMSD(0.05).distance(x + 0.03, x), torch.full((8,), 0.03))


@pytest.mark.parametrize("threat", [Linf(0.1), L2(0.5)], ids=str)
def test_only_what_lies_outside_the_ball_is_projected(threat, images):
    x = images(8)
    points = anywhere(x).clamp(0, 1)
    outside = threat.distance(points, x) > threat.epsilon
    assert 0 < outside.sum() < 8
    result = into_ball(threat, points, x)
    assert torch.equal(result[~outside], points[~outside])
    assert torch.equal(result[outside], threat.project(points, x)[outside])


@pytest.mark.parametrize("threat", [L2(30.0), RMSD(0.08)], ids=str)
def test_large_images_stay_in_the_ball_to_the_last_digits(threat):
    """Equal changes of all pixels are what float32's sum of squares gets wrong most."""
    images = torch.full((1, 3, 224, 224), 0.5)
    projected = threat.project(images + 0.15 * (torch.arange(224) % 2 * 2 - 1), images)
    length = (projected - images).double().flatten(1).norm(dim=1)
    expected = threat.epsilon * (1 if threat.norm == "l2" else (3 * 224 * 224) ** 0.5)
    assert length.item() == pytest.approx(expected, rel=1e-6)
    assert threat.distance(projected, images).item() == pytest.approx(threat.epsilon, rel=1e-6)


class Masked(Threat):
    """Only the upper half may change; a class of its own that is no dataclass."""

    norm = "linf"

    def __init__(self, epsilon: float) -> None:
        self.epsilon = epsilon

    def random_start(self, images, rng):
        return images

    def project(self, adversarial, images):
        inside = Linf(self.epsilon).project(adversarial, images)
        half = images.shape[2] // 2
        return torch.cat([inside[:, :, :half], images[:, :, half:]], dim=2)

    def distance(self, adversarial, images):
        return Linf(self.epsilon).distance(adversarial, images)


class Resized(Masked):
    """The same, and how it changes its radius."""

    def at(self, epsilon: float) -> "Resized":
        return Resized(epsilon)


def test_a_threat_has_other_radii_or_says_that_it_has_none():
    for threat in THREATS:
        assert threat.at(0.3) == replace(threat, epsilon=0.3)
    moved = ProjectedGradient(threat=Resized(0.1)).at_radius(0.2)
    assert type(moved.threat) is Resized
    assert moved.threat.epsilon == 0.2
    with pytest.raises(OptionError, match="Masked.*a frozen dataclass with a field epsilon, or"):
        ProjectedGradient(threat=Masked(0.1)).at_radius(0.2)
