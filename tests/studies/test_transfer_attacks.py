"""Attacks of the studies of transfer, and the papers' figures beside them: that each row is the
attack that it is called, with the paper's numbers at scale paper.
"""

import json
from dataclasses import replace
from statistics import fmean

import pytest
import torch

from robusttrain.config.attacks import scenarios
from studies import (
    input_diversity,
    noise_reduced_gradient,
    randomization,
    transferable_ensembles,
)
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


def test_the_papers_figures_are_all_there():
    """Tables 2 and 6 of xie-2018, Inception-v3, have all five attacks on the bare model and behind
    one-pixel resizing; table 3 of xie-2019 has seven held-out networks.
    """
    assert {len(figures) for figures in randomization.PAPER.values()} == {len(randomization.ORDER)}
    assert randomization.PAPER.keys() == {
        *("bare", "vanilla", "single pattern", "ensemble pattern"),
        *("one-pixel padding", "one-pixel resizing"),
    }
    assert randomization.PAPER["bare"] == (0.332, 0.311, 0.33, 0, 0)
    assert randomization.PAPER["one-pixel resizing"] == (0.562, 0.488, 0.51, 0.994, 0.978)
    table_3 = {
        "ifgsm": (43.7, 36.4, 33.3, 25.4, 12.9, 15.1, 8.8),
        "difgsm": (69.9, 67.9, 64.1, 51.7, 36.3, 35.0, 30.4),
        "mifgsm": (71.4, 65.9, 64.6, 55.6, 22.8, 26.1, 15.8),
        "mdifgsm": (80.7, 80.6, 80.7, 70.9, 44.6, 44.5, 39.4),
    }
    means = {name: round(fmean(rates) / 100, 3) for name, rates in table_3.items()}
    assert means == input_diversity.PAPER_HELD_OUT
