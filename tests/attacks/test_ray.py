"""The search along a ray: the boundary where there is one, and nothing where there is none."""

import pytest
import torch
from torch import nn

from robusttrain.attacks import DDN, FMN, L2, CarliniWagner, Margin, NearestBoundary
from robusttrain.attacks.ray import FINE, Majority, held


class Bright(nn.Module):
    """Class 1 from a mean brightness on."""

    def __init__(self, least):
        super().__init__()
        self.least = least

    def forward(self, images):
        off = images.mean((1, 2, 3)) - self.least
        return torch.stack([-off, off], 1)


@pytest.mark.parametrize("first", [0.05, 0.29, 0.5])
def test_the_boundary_is_found_from_before_and_from_beyond(first, streams):
    """Brightness 0 to 1 along the ray, the boundary at 0.3."""
    x, y = torch.zeros(2, 3, 4, 4), torch.zeros(2, dtype=torch.int64)
    majority = Majority(Bright(0.3), Margin(), y, 0.0, 5)
    random = torch.tensor([True, False])
    point = held(majority, L2(10), x, torch.full_like(x, first), random, streams(2))
    assert 0.3 < point[0].mean() <= 0.3 * FINE
    assert torch.equal(point[1], torch.full_like(x[1], first))  # deterministic: left alone


def test_where_no_radius_passes_what_was_found_stays(streams):
    x, y = torch.zeros(1, 3, 4, 4), torch.zeros(1, dtype=torch.int64)
    majority = Majority(Bright(2.0), Margin(), y, 0.0, 5)  # outside the box
    found = torch.full_like(x, 0.2)
    everyone = torch.ones(1, dtype=torch.bool)
    assert torch.equal(held(majority, L2(10), x, found, everyone, streams(1)), found)


@pytest.mark.parametrize(
    "attack",
    [
        FMN(60, threat=L2(10)),
        NearestBoundary(60, threat=L2(10)),
        DDN(60, threat=L2(10)),
        CarliniWagner(40, search_steps=3, initial_c=1.0, threat=L2(10)),
    ],
    ids=["fmn", "nearest", "ddn", "cw"],
)
def test_a_lucky_draw_on_the_image_itself_is_no_adversarial_image(attack, unsure, streams):
    """A quarter of first draws are wrong. Those images have to move like the others."""
    x, y = torch.full((64, 1, 4, 4), 0.5), torch.zeros(64, dtype=torch.int64)
    distance = (attack(unsure, x, y, streams(64)) - x).flatten(1).norm(dim=1)
    assert distance.min() > 0.01
    assert distance.max() < 5 * 0.075
    assert 0.075 < distance.median() < 2 * 0.075
