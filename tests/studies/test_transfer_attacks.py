"""Attacks of the studies of transfer: that each row is the attack that it is called, with the
papers' numbers at scale paper.
"""

import json
from dataclasses import replace

import pytest
import torch

from robusttrain.config.attacks import scenarios
from studies import input_diversity, noise_reduced_gradient, transferable_ensembles
from studies.transfers import PIXEL, Field

#: Of the papers' radius, with no models and no data.
ARENA = Field({}, {}, 10_000, 15 * PIXEL, "crafted")


def scenario(attack, changes, epsilon):
    said = [(key, json.dumps(to)) for key, to in changes.items()]
    return scenarios([attack], said, epsilon)[attack]


def test_fg_and_fgs_are_two_attacks(linear, streams):
    """FG follows the gradient's values, FGS its signs [liu-2017, section 2.2.1]; both move grey
    images by an RMSD of 23.5/255.
    """
    rows = transferable_ensembles.attacks(transferable_ensembles.SETTINGS["paper"])
    grey, labels = torch.full((4, 3, 8, 8), 0.5), torch.arange(4)
    model = linear(classes=4)
    length = transferable_ensembles.RMSD * PIXEL
    change = {}
    for name in ("FG", "FGS"):
        attack, changes, _ = rows[name]
        made = scenario(attack, changes, length).attack(model, grey, labels, streams(4))
        change[name] = (made - grey).abs()
        rmsd = change[name].square().flatten(1).mean(dim=1).sqrt()
        assert torch.allclose(rmsd, torch.full((4,), length), rtol=1e-5)
    assert torch.allclose(change["FGS"], torch.full_like(grey, length), rtol=1e-5)
    assert change["FG"].std() > 0.1 * length


@pytest.mark.parametrize(
    ("epsilon", "steps", "length"),
    [
        *((15, None, 1), (15, 15, 1), (15, 19, 1), (15, 31, 1)),  # the paper's
        *((15, 5, 18 / 5), (8, None, 1), (8, 5, 2), (8, 20, 1)),
    ],
)
def test_steps_of_1_where_they_reach_the_radius(epsilon, steps, length):
    """N varies, and alpha stays 1, in figure 5 of xie-2019; N = 15 reaches a radius of 15."""
    arena = replace(ARENA, epsilon=epsilon * PIXEL)
    moved = input_diversity.moved(arena, input_diversity.SETTINGS["paper"], steps)
    assert moved["step_size"] == pytest.approx(length * PIXEL)
    assert moved["steps"] == (steps or {15: 18, 8: 10}[epsilon])


def test_targeted_attacks_have_the_papers_numbers():
    """k = 20, alpha = 15 and epsilon = 20 in table 8 of wu-2018, for both; elsewhere, equal numbers
    of gradients.
    """
    for size, counts, radius in (("paper", (20, 400), 20), ("small", (20, 20), 15)):
        settings = noise_reduced_gradient.SETTINGS[size]
        points = noise_reduced_gradient.points_of(ARENA, settings, ARENA)
        for version, count in zip(("plain", "reduced"), counts, strict=True):
            about = points[f"IGSM targeted, {version}"].arguments
            ((attack, changes),) = about["attacks"].items()
            made = scenario(attack, changes, about["epsilon"]).attack
            assert made.cost().gradients == count
            assert made.alpha == pytest.approx(0.75 * radius * PIXEL)
            assert made.threat.epsilon == pytest.approx(radius * PIXEL)
