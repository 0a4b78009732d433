"""Random noise: what it finds, what it costs, and that luck does not decide on random models."""

from dataclasses import replace

import pytest
import torch
from torch import nn

from robusttrain.attacks import L2, Linf, Margin, RandomNoise
from robusttrain.core.errors import OptionError

LABELS = torch.arange(8) % 3


class FirstPixel(nn.Module):
    """Class 1 wins where the first pixel is above a threshold: the chance of a draw is known."""

    def __init__(self, threshold: float) -> None:
        super().__init__()
        self.threshold = threshold

    def forward(self, images):
        a = images[:, 0, 0, 0] - self.threshold
        return torch.stack([torch.zeros_like(a), a], dim=1)


def test_the_share_found_is_the_chance_of_a_draw(streams):
    """A pixel of U(0.4, 0.6) is above 0.59 in one draw of 20: in n draws with probability 1 -
    0.95^n.
    """
    x, labels = torch.full((2000, 1, 2, 2), 0.5), torch.zeros(2000, dtype=torch.int64)
    for queries, draws in ((4, 2), (22, 20)):
        attack = RandomNoise(queries, votes=1, threat=Linf(0.1))
        found = attack(FirstPixel(0.59), x, labels, streams(2000))
        share = FirstPixel(0.59)(found).argmax(1).float().mean().item()
        assert share == pytest.approx(1 - 0.95**draws, abs=4 * 0.5 / 2000**0.5)


@pytest.mark.parametrize("threat", [Linf(0.05), L2(0.5)], ids=str)
def test_the_best_point_that_was_asked_comes_back(threat, curved, images, streams):
    model, x, seen = curved(), images(8), []
    labels = model(x).argmax(1)

    class Recorded(nn.Module):
        def forward(self, images):
            logits = model(images)
            seen.append(Margin()(logits, labels))
            return logits

    attack = RandomNoise(40, threat=replace(threat, epsilon=threat.epsilon / 50))
    found = attack(Recorded(), x, labels, streams(8))
    assert len(seen) == 40
    torch.testing.assert_close(Margin()(model(found), labels), torch.stack(seen[2:]).amax(dim=0))
    assert attack.threat.distance(found, x).max() <= attack.threat.epsilon + 1e-6


def test_images_leave_when_they_are_misclassified(counting, streams):
    x, labels = torch.full((8, 1, 2, 2), 0.5), torch.zeros(8, dtype=torch.int64)
    x[:4, 0, 0, 0] = 0.7  # misclassified as they are
    model = counting(FirstPixel(0.6))
    model.random = False
    found = RandomNoise(500, threat=Linf(0.2))(model, x, labels, streams(8))
    assert torch.equal(found[:4], x[:4])
    assert (found[4:, 0, 0, 0] > 0.6).all()
    assert 2 * 8 + 4 <= model.queries < 2 * 8 + 4 * 60


class Doubtful(nn.Module):
    """Noise drowns a first pixel that matters: the largest single margin says nothing."""

    takes_rng = True

    def forward(self, images, rng):
        a = images[:, 0, 0, 0] - 0.5 + rng.normal(())
        return torch.stack([torch.zeros_like(a), a], dim=1)


def test_luck_does_not_decide_on_a_random_model(counting, streams):
    x, labels = torch.full((200, 1, 2, 2), 0.5), torch.zeros(200, dtype=torch.int64)
    model = counting(Doubtful())
    attack = RandomNoise(2 + 2 * 30 * 20, votes=30, threat=Linf(0.4))
    found = attack(model, x, labels, streams(200))
    assert model.queries == 200 * attack.cost().queries  # nobody leaves
    keys = len(set(model.keys))
    assert keys == 200 * (2 + 30 * 20)  # both rivals see the same draws
    # A point chosen at random would have its first pixel at 0.5 on average.
    assert found[:, 0, 0, 0].mean() > 0.62


@pytest.mark.parametrize("change", [{"queries": 40}, {"votes": 1}, {"threat": Linf(0.01)}], ids=str)
def test_every_field_changes_the_outcome(change, random_linear, images, streams):
    plain = RandomNoise(82, votes=4)
    first = plain(random_linear(), images(8), LABELS, streams(8))
    assert torch.equal(plain(random_linear(), images(8), LABELS, streams(8)), first)
    assert (
        replace(plain, **change)(random_linear(), images(8), LABELS, streams(8)) - first
    ).abs().max() > 1e-4


def test_an_image_is_attacked_alone_as_in_its_batch(curved, random_linear, images, streams):
    for model in (curved(), random_linear()):
        attack, order = RandomNoise(22, votes=2), torch.tensor([6, 0, 3])
        whole = attack(model, images(8), LABELS, streams(8))
        part = attack(model, images(8)[order], LABELS[order], streams(8)[order])
        torch.testing.assert_close(part, whole[order])


def test_too_few_queries_are_one_line():
    with pytest.raises(OptionError, match="queries = 21: must be at least 2 \\+ 2 votes = 22"):
        RandomNoise(21)


def test_other_versions_have_queries_for_their_votes():
    attack = RandomNoise(100, votes=30)
    assert attack.scaled(0).queries == 62
    assert RandomNoise(30, votes=10).with_draws(20) == RandomNoise(42, votes=20)
    # 249 points, as before: with as many queries, twice the votes would be half the points.
    assert RandomNoise(5000, votes=10).with_draws(20) == RandomNoise(9962, votes=20)
