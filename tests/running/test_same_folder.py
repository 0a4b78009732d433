"""A folder that holds a finished evaluation answers for no other model, defense or attack."""

from dataclasses import dataclass, field

import pytest
import torch
from torch import nn

import robusttrain
from robusttrain.attacks import Attack, Cost, Linf
from robusttrain.defenses import Defense, GaussianNoise
from robusttrain.models import Normalize

pytestmark = pytest.mark.filterwarnings("ignore")


class Bright(nn.Module):
    """Class 1 for an image whose mean is above a threshold, which is no buffer."""

    def __init__(self, threshold=0.5):
        super().__init__()
        self.threshold = threshold

    def forward(self, images):
        light = images.mean((1, 2, 3)) - self.threshold
        return torch.stack([-light, light], 1)


class Dim(Defense):
    def __init__(self, factor):
        super().__init__()
        self.factor = factor

    def transform(self, images, rng):
        return self.factor * images


class Shift(Attack):
    """Adds a number that its constructor took."""

    def __init__(self, size):
        self.size, self.threat = size, Linf(0.6)

    def cost(self):
        return Cost(0, 0)

    def run(self, source, images, labels, rng):
        return (images + self.size).clamp(0, 1)


def edited(size):
    """An attack of a class whose code a cell of a notebook has changed."""

    @dataclass(frozen=True)
    class Edited(Attack):
        threat: Linf = field(default_factory=lambda: Linf(0.6))

        def cost(self):
            return Cost(0, 0)

        def run(self, source, images, labels, rng):
            return (images + size).clamp(0, 1)

    return Edited()


@dataclass(frozen=True)
class Case:
    first: dict
    second: dict


def behind(mean):
    return nn.Sequential(Normalize([mean] * 3, [1.0] * 3), Bright(0.0))


def function(sign):
    return lambda images: sign * Bright()(images)


CASES = {
    "attribute": Case({"model": Bright(0.5)}, {"model": Bright(0.1)}),
    "function": Case({"model": function(1)}, {"model": function(-1)}),
    "buffer that is not saved": Case({"model": behind(0.5)}, {"model": behind(0.1)}),
    "defense of ours": Case({"defense": GaussianNoise(0.1)}, {"defense": GaussianNoise(3.0)}),
    "defense of theirs": Case({"defense": Dim(1.0)}, {"defense": Dim(0.1)}),
    "attack of theirs": Case({"attacks": {"a": Shift(0.0)}}, {"attacks": {"a": Shift(0.6)}}),
    "code of an attack": Case({"attacks": {"a": edited(0)}}, {"attacks": {"a": edited(0.6)}}),
}


def test_with_survivors_another_order_is_another_run(tmp_path):
    """An attack is given what those before it left, so its row is another."""
    light = torch.linspace(0.2, 0.8, 16)
    images, labels = light[:, None, None, None].repeat(1, 3, 2, 2), (light > 0.5).long()
    attacks = {"weak": Shift(0.1), "strong": Shift(0.6)}

    def rows(attacks, folder):
        found = robusttrain.evaluate(
            Bright(),
            images,
            labels,
            attacks=attacks,
            output=tmp_path / folder,
            survivors=True,
            audit=False,
            progress=False,
        )
        return {name: each["success_rate_of"] for name, each in found.json["attacks"].items()}

    reverse = dict(reversed(attacks.items()))
    first, second, alone = rows(attacks, "same"), rows(reverse, "same"), rows(reverse, "own")
    assert first != second, "the case shows nothing"
    assert second == alone


@pytest.mark.parametrize("name", CASES)
def test_another_evaluation_in_the_same_folder_is_its_own(name, tmp_path):
    light = torch.linspace(0.2, 0.8, 16)
    images, labels = light[:, None, None, None].repeat(1, 3, 2, 2), (light > 0.5).long()
    common = {"model": Bright(), "attacks": "fgsm", "audit": False, "progress": False, "draws": 2}

    def evaluated(folder, changes):
        return robusttrain.evaluate(
            images=images, labels=labels, output=tmp_path / folder, **{**common, **changes}
        )

    case = CASES[name]
    first = evaluated("same", case.first)
    assert evaluated("same", case.first).json["clean"] == first.json["clean"]
    second, alone = evaluated("same", case.second), evaluated("own", case.second)
    for key in ("clean", "worst_case"):
        assert second.json[key] == alone.json[key]
    assert second.json["worst_case"] != first.json["worst_case"], "the case shows nothing"
