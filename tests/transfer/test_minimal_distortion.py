"""The linear search along a direction, on models whose boundaries are known."""

import math

import pytest
import torch
from torch import nn

from robusttrain.core.errors import OptionError, UserError
from robusttrain.transfer import cumulative, least_for, minimal_distortion, rmsd


class Bands(nn.Module):
    """Class 1 where the mean pixel value lies in one of the bands, else class 0."""

    def __init__(self, *bands):
        super().__init__()
        self.bands = bands

    def forward(self, images):
        mean = images.mean(dim=(1, 2, 3))
        inside = (
            torch.stack([(mean >= low) & (mean < high) for low, high in self.bands])
            .any(dim=0)
            .float()
        )
        return torch.stack([1 - inside, inside], dim=1)


ZERO = torch.zeros(3, dtype=torch.int64)


def grey(*values):
    return torch.stack([torch.full((3, 8, 8), value) for value in values])


def test_the_first_of_several_intervals_is_found():
    """A bisection between 0 and 0.5 would end at 0.3."""
    model = Bands((0.205, 0.225), (0.3, 1.1))
    found = minimal_distortion(
        [model], grey(0.1, 0.15, 0.18), torch.ones(3, 3, 8, 8), ZERO, step=0.01, limit=0.5
    )
    assert found.tolist() == pytest.approx([0.11, 0.06, 0.03], abs=1e-6)


def test_it_must_fool_the_source_and_the_target():
    source, target = Bands((0.205, 0.225), (0.295, 1.1)), Bands((0.255, 1.1))
    both = minimal_distortion(
        [source, target], grey(0.1, 0.2, 0.24), torch.ones(3, 3, 8, 8), ZERO, step=0.01
    )
    assert both.tolist() == pytest.approx([0.2, 0.1, 0.06], abs=1e-6)
    swapped = minimal_distortion(
        [target, source], grey(0.1, 0.2, 0.24), torch.ones(3, 3, 8, 8), ZERO, step=0.01
    )
    assert torch.equal(both, swapped)


def test_an_image_that_is_wrong_already_needs_nothing():
    assert minimal_distortion(
        [Bands((0.0, 1.1))], grey(0.5), torch.ones(1, 3, 8, 8), ZERO[:1]
    ).tolist() == [0.0]


@pytest.mark.parametrize("lengths", [(1e-9, 1e3), (1e-35, 1e36)])
def test_directions_count_by_their_direction_alone(lengths):
    """A sure model's gradient is shorter than any length that float32 squares."""
    x = grey(0.4, 0.4)
    direction = torch.ones(1, 3, 8, 8).repeat(2, 1, 1, 1) * torch.tensor(lengths).view(2, 1, 1, 1)
    found = minimal_distortion([Bands((0.45, 1.1))], x, direction, ZERO[:2], step=0.01)
    assert found.tolist() == pytest.approx([0.05, 0.05], abs=1e-6)


def test_beyond_the_limit_or_without_direction_there_is_none():
    x = grey(0.1, 0.1)
    direction = torch.stack([torch.ones(3, 8, 8), torch.zeros(3, 8, 8)])
    found = minimal_distortion([Bands((0.3, 1.1))], x, direction, ZERO[:2], step=0.01, limit=0.19)
    assert found.tolist() == [math.inf, math.inf]
    found = minimal_distortion([Bands((0.295, 1.1))], x, direction, ZERO[:2], step=0.01, limit=0.2)
    assert found.tolist() == pytest.approx([0.2, math.inf])


def test_targeted_search_waits_for_the_goal(images, linear):
    model, x = linear(), images(6)
    labels = model(x).argmax(1)
    goals = (labels + 1) % 3
    weight = model.weight.detach().view(3, 3, 8, 8)
    directions = weight[goals] - weight[labels]
    wrong = minimal_distortion([model], x, directions, labels, step=0.005)
    hit = minimal_distortion([model], x, directions, labels, goals, step=0.005)
    assert hit.isfinite().all()
    assert (hit >= wrong).all()


def test_on_a_linear_model_it_is_the_distance_to_the_boundary(images, linear):
    """Of two classes: |z_1 - z_0| / |w| in L2, found to within one step, from any batch."""
    model, x = linear(classes=2, seed=1), images(9)
    logits = model(x).detach()
    labels = logits.argmax(1)
    weight = model.weight.detach()
    towards = (weight[1] - weight[0]).view(3, 8, 8)
    directions = torch.where((labels == 0).view(-1, 1, 1, 1), towards, -towards)
    known = (logits[:, 0] - logits[:, 1]).abs() / towards.norm() / math.sqrt(192)
    found = minimal_distortion([model], x, directions, labels, step=0.001)
    assert ((found >= known - 1e-6) & (found <= known + 0.001)).all()
    for batch in (1, 4, 10_000):
        assert torch.allclose(
            minimal_distortion([model], x, directions, labels, step=0.001, batch=batch), found
        )
    coarse = minimal_distortion([model], x, directions, labels, step=0.02)
    assert not torch.allclose(coarse, found)


def test_points_are_images_and_the_distortion_is_theirs():
    """White pixels cannot get whiter: half of the pixels move, and the RMSD says so."""
    x = torch.ones(1, 1, 2, 2)
    x[..., 0] = 0.5
    found = minimal_distortion([Bands((0.8, 1.01))], x, torch.ones(1, 1, 2, 2), ZERO[:1], step=0.01)
    moved = x.clone()
    moved[..., 0] = 0.6
    assert found.tolist() == pytest.approx(rmsd(moved, x).tolist(), abs=0.01 / math.sqrt(2))


def test_the_model_is_left_as_it_was(convnet, images):
    model = convnet().train()
    minimal_distortion([model], images(2), torch.ones(2, 3, 8, 8), ZERO[:2], limit=0.01)
    assert all(module.training for module in model.modules())


def test_an_answer_that_is_not_finite_does_not_count():
    class Broken(nn.Module):
        def forward(self, images):
            return torch.full((len(images), 2), torch.nan)

    assert (
        minimal_distortion([Broken()], grey(0.5), torch.ones(1, 3, 8, 8), ZERO[:1] + 1, limit=0.01)
        .isinf()
        .all()
    )


def test_what_cannot_work_is_one_line(images, random_linear, linear):
    x = images(2)
    with pytest.raises(UserError, match="deterministic"):
        minimal_distortion([random_linear()], x, x, ZERO[:2])
    with pytest.raises(UserError, match="NaN"):
        minimal_distortion([linear()], x, x * math.nan, ZERO[:2])
    with pytest.raises(OptionError, match="step = 0"):
        minimal_distortion([linear()], x, x, ZERO[:2], step=0)
    with pytest.raises(OptionError, match="limit = -1"):
        minimal_distortion([linear()], x, x, ZERO[:2], limit=-1)
    assert minimal_distortion([linear()], x[:0], x[:0], ZERO[:0]).shape == (0,)


def test_the_cumulative_distribution():
    distortions = torch.tensor([0.0, 0.1, 0.3, math.inf])
    shares = {r: estimate.value for r, estimate in cumulative(distortions, [0.0, 0.1, 0.2, 1.0])}
    assert shares == {0.0: 0.25, 0.1: 0.5, 0.2: 0.5, 1.0: 0.75}
    assert [least_for(distortions, share) for share in (0.25, 0.5, 0.51, 0.75)] == pytest.approx(
        [0.0, 0.1, 0.3, 0.3]
    )
    assert least_for(distortions, 0.9) == math.inf
    # 0.9 * 10 is a little over 9 in floating point
    assert least_for(torch.arange(10.0), 0.9) == 8.0
    assert math.isnan(least_for(torch.zeros(0), 0.5))
