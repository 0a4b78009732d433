"""The nearest adversarial image touches a boundary: rounding alone does not decide its verdict."""

from dataclasses import dataclass, field

import pytest
import torch
from torch import nn

from robusttrain.attacks import Attack, Cost, Linf, Restarts, Several, Target
from robusttrain.attacks.parts.threats import per_image
from robusttrain.attacks.rounding import FARTHER, held_apart
from robusttrain.evaluation import Engine, Scenario

COUNT, HALF = 12, 0.5


class Light(nn.Module):
    """Class 1 where the mean pixel is above a half."""

    def forward(self, images):
        mean = images.double().mean(dim=(1, 2, 3))
        return torch.stack([HALF - mean, mean - HALF], dim=1).float()


light = Light()


@dataclass(frozen=True)
class Short(Attack):
    """Ends short of the boundary of `Light`, by a share of the way."""

    by: float = 1e-6
    nearest: bool = True
    threat: Linf = field(default_factory=lambda: Linf(0.4))

    @property
    def seeks_nearest(self):
        return self.nearest

    def cost(self):
        return Cost(0, 1)

    def run(self, source, images, labels, rng):
        source(images)
        way = HALF - images.mean(dim=(1, 2, 3))
        return self.threat.project(images + per_image((1 - self.by) * way), images)


@pytest.fixture
def batch():
    shade = torch.linspace(0.2, 0.45, COUNT)
    return per_image(shade).repeat(1, 1, 4, 4), torch.zeros(COUNT, dtype=torch.int64)


def score(model, attack, images, labels):
    """Verdicts (B,) and adversarial images (B, C, H, W) of an evaluation."""
    engine = Engine(model, {"it": Scenario(attack, Target())}, keep_images=True)
    records = engine.run(images, labels, torch.arange(len(images)))[0].of("it")
    return records.score[:, 0], records.images


@pytest.mark.parametrize("by", [1e-6, 1e-3, 9e-3])
def test_what_falls_short_by_up_to_a_hundredth_is_moved_on(by, batch):
    images, labels = batch
    right, found = score(light, Short(by), images, labels)
    assert not right.any()
    way = HALF - images.mean(dim=(1, 2, 3))
    away = Linf().distance(found, images)
    assert (away <= (1 + max(FARTHER)) * way + 1e-6).all()


@dataclass(frozen=True)
class ByNorm(Short):
    """Of those that look for a boundary and stop at the first one, as DeepFool and FAB."""

    nearest: bool = False
    by_norm = True


@pytest.mark.parametrize(
    "wrapped",
    [
        lambda attack: attack,
        lambda attack: Restarts(attack, 2, threat=attack.threat),
        lambda attack: Several([attack], threat=attack.threat),
        lambda attack: Restarts(Several([Short(0.5), attack]), 2, threat=attack.threat),
    ],
    ids=["alone", "restarts", "several", "restarts of several"],
)
def test_a_wrapper_touches_what_its_members_touch(wrapped, batch):
    images, labels = batch
    attack = wrapped(ByNorm())
    assert attack.by_norm
    assert not score(light, attack, images, labels)[0].any()
    assert not Several([Short(nearest=False)]).by_norm


def test_what_falls_short_by_more_an_attack_of_another_kind_and_a_rim_stay(batch):
    images, labels = batch
    for attack in (Short(0.02), Short(1e-3, nearest=False)):
        right, found = score(light, attack, images, labels)
        assert right.all()
        assert found.equal(attack.run(light, images, labels, None))
    way = float(HALF - images[0].mean())
    narrow = Short(1e-6, threat=Linf((1 - 1e-6) * way))
    assert score(light, narrow, images[:1], labels[:1])[0].all()


def test_an_image_that_came_back_as_it_was_is_not_moved(batch):
    images, _ = batch

    def right(points):
        assert points.equal(images)
        return torch.ones(len(points), dtype=torch.bool)

    assert held_apart(images.clone(), images, Linf(0.1), right).equal(images)
