"""Differences of two evaluations of the same images."""

import math

import pytest
import torch
from scipy.stats import binom

from robusttrain.evaluation.paired import agresti_min, around, compared


def test_the_interval_of_shares_is_that_of_their_mean():
    change = torch.tensor([0.5, -0.5, 0.25, 0.0] * 16, dtype=torch.float64)
    error = float(change.std()) / 8
    low, high = around(change)
    assert low <= 0.0625 - 1.959964 * error
    assert high >= 0.0625 + 1.959964 * error
    assert high - low < 1.03 * 2 * 1.959964 * error


def test_where_nothing_varies_the_interval_still_has_a_width():
    """A random model that keeps every verdict shows no more than one that is not random."""
    same = torch.zeros(100)
    plain = compared(same, same, "worst case", random=False)
    drawn = compared(same, same, "worst case", random=True)
    assert (drawn.low, drawn.high) == (plain.low, plain.high)
    assert drawn.high == pytest.approx(1.959964 / 102)
    assert drawn.p == 1
    low, high = around(torch.ones(100))
    assert 0.9 < low < high <= 1
    fallen = compared(torch.ones(100), same, "worst case", random=True)
    assert fallen.p == pytest.approx(compared(torch.ones(100), same, "", random=False).p)


@pytest.mark.parametrize(("count", "share"), [(100, 0.03), (100, 0.05), (50, 0.1)])
def test_it_covers_the_truth_where_few_images_change(count, share):
    """Exactly: over all numbers of images that fall, by their chance."""

    def holds(fallen):
        low, high = around(torch.tensor([-1.0] * fallen + [0.0] * (count - fallen)))
        return low <= -share <= high

    covered = sum(binom.pmf(n, count, share) for n in range(count + 1) if holds(n))
    assert covered > 0.94


@pytest.mark.parametrize(("share", "count"), [(0.3, 10), (0.1, 12), (-0.7, 3)])
def test_the_same_change_of_every_image_lies_in_its_interval(share, count):
    """Whatever its rounding makes of the spread."""
    low, high = around(torch.full((count,), share, dtype=torch.float64))
    assert low <= share + 1e-12
    assert high >= share - 1e-12
    assert high - low > 0.05


def test_of_few_images_neither_interval_nor_chance_says_more_than_they_can():
    """Six pairs can agree by chance with 2 / 2^6."""
    after = torch.tensor([1.0, 1, 1, 1, 1, 0.9], dtype=torch.float64)
    found = compared(torch.zeros(6), after, "worst case", random=True)
    assert found.p == pytest.approx(2 / 2**6)
    assert found.low < 0.5
    assert found.high == 1
    # Of whole verdicts the interval is that of Agresti & Min, or the normal one where it is wider.
    whole = torch.tensor([1.0, 1, 1, 0, 0, -1], dtype=torch.float64)
    low, high = around(whole)
    assert low <= agresti_min(1, 3, 6)[0]
    assert high >= agresti_min(1, 3, 6)[1]
    many = torch.tensor([0.9, 1.0] * 50, dtype=torch.float64)
    assert around(many)[1] <= 1


def test_one_image_has_no_interval():
    assert all(math.isnan(end) for end in around(torch.ones(1)))
    assert math.isnan(compared(torch.ones(1), torch.zeros(1), "", random=True).p)


@pytest.mark.parametrize(("lost", "count"), [(4, 8), (5, 20), (5, 1000)])
@pytest.mark.parametrize("random", [False, True])
def test_an_interval_holds_zero_wherever_chance_explains_the_difference(lost, count, random):
    """McNemar's p of five that all fell is 2 / 2^5, above 0.05, whatever Agresti & Min say."""
    assert agresti_min(lost, 0, count)[1] < 0, "the case shows nothing"
    after = torch.ones(count)
    after[:lost] = 0
    found = compared(torch.ones(count), after, "worst case", random)
    assert found.p == pytest.approx(2 / 2**lost)
    assert found.high == 0
    assert found.low <= agresti_min(lost, 0, count)[0] + 1e-12
    assert found.points.endswith(" to +0.0)")
    assert found.reversed.points.endswith("(+0.0 to " + f"{-100 * found.low:+.1f})")


@pytest.mark.parametrize("count", [6, 7, 10, 40, 200])
def test_interval_and_chance_agree_on_models_that_always_answer_the_same(count):
    for lost in range(min(count, 25) + 1):
        for won in range(min(count - lost, 25) + 1):
            after = torch.tensor([0.0] * lost + [1.0] * (count - lost))
            before = torch.tensor([1.0] * (count - won) + [0.0] * won)
            found = compared(before, after, "worst case", random=False)
            assert (found.p < 0.05) == (not found.low <= 0 <= found.high), found
            assert not found.unsure
