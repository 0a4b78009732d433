"""What a difference over seeds and images is worth, and what a pass costs."""

from math import sqrt

import pytest
import torch
from torch import nn

from studies import does_g_add
from studies.does_g_add import Beside, Counting, operations
from studies.scales import training_plan


def test_a_difference_over_images_alone():
    """Of one seed, the interval of the mean."""
    differences = torch.tensor([[1.0, 0.0, 0.0, -1.0, 1.0, 0.0, 0.0, 1.0]])
    beside = Beside.of(differences)
    assert beside.mean == 0.25
    assert beside.error == pytest.approx(float(differences.std()) / sqrt(8))
    # 2.3646 and 0.8960: the 97.5 and 80 % quantiles of Student's t with 7 degrees of freedom.
    assert beside.detectable == pytest.approx((2.3646 + 0.8960) * beside.error, rel=1e-4)
    half = 236.46 * beside.error
    assert str(beside) == f"+25.0 ({25 - half:+.1f} to {25 + half:+.1f})"


def test_seeds_that_disagree_widen_it():
    same = Beside.of(torch.tensor([[1.0, 0.0], [1.0, 0.0]]))
    other = Beside.of(torch.tensor([[1.0, 1.0], [0.0, 0.0]]))
    assert same.mean == other.mean == 0.5
    assert same.error == pytest.approx(0.5), "images differ, seeds agree"
    assert other.error == pytest.approx(0.5), "images agree, seeds differ"


def test_images_that_are_all_alike_leave_a_width():
    """Where nothing falls, or nothing differs, few images may have hidden that something does."""
    none = Beside.of(torch.zeros(3, 100), shares=True)
    # (2 +- 1.96 sqrt(2 (1 - 2 / 104))) / 104: of 104 images two fell.
    assert none.share == "0.0 % (0.0 - 4.6)"
    assert Beside.of(torch.ones(1, 100), shares=True).share == "100.0 % (95.4 - 100.0)"
    same = Beside.of(torch.zeros(3, 100))
    assert str(same) == "+0.0 (-1.9 to +1.9)", "of 100 images of which none changed (Agresti & Min)"
    assert same.detectable > same.margin > 0, "as many images show no smaller difference"


@pytest.mark.parametrize("images", [50, 200])
@pytest.mark.parametrize("true", [0.005, 0.02, 0.98])
@pytest.mark.parametrize("seeds", [1, 3])
def test_shares_near_the_ends_are_held(images, true, seeds):
    """Images that are hard for all seeds, or mostly; an interval of the variance alone holds the
    truth in a quarter to nine tenths of such runs.
    """
    generator = torch.Generator().manual_seed(0)
    held, trials, end = 0, 400, float(torch.special.ndtri(torch.tensor(true)))
    for _ in range(trials):
        hard = 0.8 * torch.randn(1, images, generator=generator)
        worst = hard + 0.6 * torch.randn(seeds, images, generator=generator) < end
        beside = Beside.of(worst.float(), shares=True)
        held += beside.low <= true <= beside.high
    assert held / trials >= 0.9


@pytest.mark.parametrize(("seeds", "spread"), [(1, 0.0), (2, 0.0), (2, 0.02), (3, 0.02)])
def test_nineteen_intervals_of_twenty_hold_the_truth(seeds, spread):
    """Images that are easy or hard for all seeds, and seeds that are better or worse."""
    generator = torch.Generator().manual_seed(0)
    held, trials, images = 0, 1000, 297
    for _ in range(trials):
        hard = torch.rand(1, images, generator=generator) < 0.2
        own = spread * torch.randn(seeds, 1, generator=generator)
        chance = torch.where(hard, 0.5, 0.95) + own
        worst = (torch.rand(seeds, images, generator=generator) < chance).float()
        beside = Beside.of(worst)
        held += abs(beside.mean - (0.8 * 0.95 + 0.2 * 0.5)) <= beside.margin
    assert held / trials >= 0.925  # of 0.95; the approximation costs a point with two seeds


def test_the_power_is_what_it_says():
    """Of differences that are as large as can be detected, four in five are."""
    generator = torch.Generator().manual_seed(0)
    hits, trials, images = 0, 2000, 400
    true = 2.8 / sqrt(images)  # of differences with a standard deviation of 1
    for _ in range(trials):
        beside = Beside.of(torch.randn(1, images, generator=generator) + true)
        hits += beside.mean - beside.margin > 0
    assert hits / trials == pytest.approx(0.8, abs=0.03)


def test_operations_are_those_of_the_formula():
    layer, images = nn.Linear(5, 3, bias=False), torch.rand(2, 5, requires_grad=True)
    with Counting() as counting:
        out = layer(images).sum()
    assert counting.total == 2 * 2 * 5 * 3
    with Counting() as counting:
        torch.autograd.grad(out, images)
    assert counting.total == 2 * 2 * 5 * 3, "the gradient of the images alone"


def test_an_image_costs_the_same_in_a_batch_of_any_size(monkeypatch):
    """What a run does once, whatever it is given, is no cost of an image."""
    steps = "training.objective.attack.steps"
    small = ("--data=digits", "--model.widths=[4,8]", "--model.blocks=1", "--training=adversarial")
    plans = [training_plan(*small, f"--{steps}={count}") for count in (1, 2, 3)]
    found = {}
    for images in (2, 5):
        monkeypatch.setattr(does_g_add, "FEW", images)
        found[images] = [operations(plan) for plan in plans]
    assert found[2] == found[5]
    one, two, three = (each.training for each in found[2])
    assert three - two == two - one > 0, "each step of the attack costs as much"
