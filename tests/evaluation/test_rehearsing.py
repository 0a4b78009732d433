"""The user's own attacks run on two images first: what fails there fails before anything else."""

from dataclasses import dataclass, field

import pytest
import torch
from torch import Tensor

import robusttrain
from robusttrain.attacks import (
    Attack,
    Cost,
    CrossEntropy,
    Linf,
    Objective,
    OtherModel,
    ProjectedGradient,
    Threat,
)
from robusttrain.core.errors import UserError
from robusttrain.evaluation import Scenario

pytestmark = pytest.mark.filterwarnings("ignore")
SETTINGS = {"threat": Linf(0.05), "precision": "float32", "progress": False, "audit": False}


@dataclass(frozen=True)
class Own(Attack):
    """Notes how many images each call has; fails as told."""

    fails: bool = False
    leaves: bool = False
    tries: int = 1
    seen: list[int] = field(default_factory=list)
    threat: Threat = field(default_factory=Linf)

    def __deepcopy__(self, memo):
        return Own(self.fails, self.leaves, self.tries, [*self.seen], self.threat)

    def cost(self) -> Cost:
        return Cost(0, self.tries)

    def run(self, source, images: Tensor, labels: Tensor, rng) -> Tensor:
        self.seen.append(len(images))
        CALLS.append(len(images))
        source(images, rng)
        torch.rand(3)
        if self.fails:
            raise IndexError("nothing there")
        return images + 0.3 if self.leaves else images


#: How many images each call of any copy had.
CALLS: list[int] = []


@dataclass(frozen=True)
class NoLosses(Objective):
    def __call__(self, logits: Tensor, goal: Tensor) -> Tensor:
        return logits.mean()


@dataclass(frozen=True)
class NeedsSteps(ProjectedGradient):
    """Fails where it is given few steps, as no evaluation gives it."""

    def run(self, source, images, labels, rng):
        if self.steps < 10:
            raise ValueError("ten steps or more")
        return super().run(source, images, labels, rng)


@pytest.fixture(autouse=True)
def forgotten():
    CALLS.clear()


def evaluated(model, images, attacks):
    """Twelve images in batches of six."""
    x = images(12)
    with torch.no_grad():
        y = model(x).argmax(1)
    return robusttrain.evaluate(model, x, y, attacks=attacks, batch_size=6, **SETTINGS)


@pytest.mark.parametrize(
    ("attack", "said"),
    [
        (Own(fails=True), r"attack mine: raised nothing there \(.*test_rehearsing.py, line \d+\)"),
        (Own(leaves=True), "attack mine left its threat"),
        (ProjectedGradient(objective=NoLosses()), "objective NoLosses: gave"),
    ],
    ids=["raises", "leaves", "objective"],
)
def test_what_fails_does_so_before_the_attacks_before_it(attack, said, linear, images):
    before = Own()
    with pytest.raises(UserError, match=said):
        evaluated(linear(), images, {"before": before, "mine": attack})
    assert not before.seen
    assert {*CALLS} <= {2}


def test_a_rehearsal_leaves_nothing_behind(linear, images):
    """A copy of the attack runs on two images; then the attack on all, which is counted."""
    attack, other = Own(), linear(seed=1)
    results = evaluated(
        linear(), images, {"mine": attack, "theirs": Scenario(Own(), OtherModel(other))}
    )
    assert attack.seen == [6, 6]
    assert sorted(CALLS) == [2, 2, 6, 6, 6, 6]
    assert results.attacks["mine"].queries == 1


def test_what_costs_much_is_not_rehearsed(linear, images):
    evaluated(linear(), images, {"mine": Own(tries=1001)})
    assert CALLS == [6, 6]


def test_failing_with_little_effort_alone_is_no_error(linear, images):
    evaluated(linear(), images, {"mine": NeedsSteps(10, objective=CrossEntropy())})
