"""What an attack, or an objective, of somebody's own says and returns is looked at before its
figures are.
"""

import warnings
from dataclasses import dataclass, field

import pytest
import torch
import torch.nn.functional as F

from robusttrain import Rng, evaluate
from robusttrain.attacks import (
    APGD,
    Attack,
    AverageLogits,
    Cost,
    Linf,
    MomentumSign,
    Normalized,
    Objective,
    ProjectedGradient,
    RandomNoise,
    Restarts,
    Square,
    Threat,
    UpdateRule,
)
from robusttrain.core.errors import UserError

pytestmark = pytest.mark.filterwarnings("ignore")
SETTINGS = {"threat": Linf(0.1), "audit": False, "progress": False}


@dataclass(frozen=True)
class Bytes(Attack):
    """Returns bytes."""

    threat: Threat = field(default_factory=lambda: Linf(0.1))

    def cost(self):
        return Cost(0, 0)

    def run(self, source, images, labels, rng):
        return (images * 255).byte()


@dataclass(frozen=True)
class Costing(Bytes):
    """Says ``says`` of its cost."""

    says: object = None

    def cost(self):
        return self.says


class Boundless(Attack):
    """Has no threat."""

    def cost(self):
        return Cost(0, 0)

    def run(self, source, images, labels, rng):
        raise AssertionError("it was run")


REFUSED = {
    "bytes": (Bytes(), r"Bytes\.run returned uint8, not floats in \[0, 1\]"),
    "no threat": (Boundless(), "attack own: Boundless has no threat"),
    "a number": (Costing(says=5), r"Costing\.cost\(\) returned 5: give Cost"),
    "NaN": (Costing(says=Cost(float("nan"), 0)), r"returned Cost\(gradients=nan, queries=0\)"),
    "less than nothing": (Costing(says=Cost(1, -1)), r"queries=-1\): give Cost"),
    "no end": (Costing(says=Cost(float("inf"), 0)), "gradients=inf"),
    "nothing": (Costing(), "returned None: give Cost"),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_an_attack_that_does_not_say_what_it_does_is_refused(kind, linear, images):
    attack, said = REFUSED[kind]
    model, x = linear(), images()
    settings = {**SETTINGS, "threat": None}
    with pytest.raises(UserError, match=said) as error:
        evaluate(model, x, model(x).argmax(1), attacks={"own": attack}, **settings)
    assert "\n" not in str(error.value)


@dataclass(frozen=True)
class Reduced(Objective):
    """Cross entropy, of the whole batch or of another shape or type."""

    kind: str = "none"

    def __call__(self, logits, goal):
        each = F.cross_entropy(logits, goal, reduction="none")
        changed = {"mean": each.mean(), "column": each[:, None], "classes": logits}
        return {**changed, "none": each, "whole": (each > 1).long()}[self.kind]


ATTACKS = [
    APGD(steps=3, objective=Reduced("none")),
    ProjectedGradient(steps=2, objective=Reduced("none")),
    ProjectedGradient(steps=2, objective=Reduced("none"), gradient=AverageLogits(2)),
    Square(queries=5, objective=Reduced("none")),
]


@pytest.mark.parametrize("kind", ["mean", "column", "classes", "whole"])
@pytest.mark.parametrize("attack", ATTACKS, ids=lambda each: type(each).__name__)
@pytest.mark.parametrize("count", [1, 6])
def test_an_objective_gives_one_float_an_image(attack, kind, count, linear, images):
    model, x = linear(), images(count)
    y, rng = model(x).argmax(1), Rng.for_images(0, torch.arange(count))
    assert attack(model, x, y, rng).shape == x.shape
    with pytest.raises(UserError, match=rf"objective Reduced: gave .* for {count} images?"):
        attack.with_objective(Reduced(kind))(model, x, y, rng)


@dataclass(frozen=True)
class L1(Threat):
    """The sum of changes is at most epsilon; projected by shrinking."""

    epsilon: float = 1.0
    norm = "l1"

    def random_start(self, images, rng):
        return self.project(images + rng.uniform(images.shape[1:], -0.1, 0.1), images)

    def project(self, adversarial, images):
        change = adversarial - images
        length = change.abs().flatten(1).sum(1).clamp_min(self.epsilon).view(-1, 1, 1, 1)
        return (images + change * (self.epsilon / length)).clamp(0, 1)

    def distance(self, adversarial, images):
        return (adversarial - images).abs().flatten(1).sum(1)


@dataclass(frozen=True)
class Own(UpdateRule):
    """A rule of somebody's own."""

    def step(self, gradient, state):
        return gradient.sign(), state


@pytest.mark.parametrize(
    ("attack", "named"),
    [
        (ProjectedGradient(steps=1, threat=L1()), "own: the rule Sign"),
        (ProjectedGradient(steps=1, threat=L1(), rule=Normalized()), "own: the rule Normalized"),
        (ProjectedGradient(steps=1, threat=L1(), rule=MomentumSign()), "rule MomentumSign"),
        (Restarts(ProjectedGradient(steps=1), 2).within(L1()), "own: the rule Sign"),
        (ProjectedGradient(steps=1, threat=L1(), rule=Own()), None),
        (ProjectedGradient(steps=1), None),
        (RandomNoise(30, threat=L1()), None),
    ],
)
def test_a_rule_of_another_norm_than_an_own_threats_is_told(attack, named, linear, images):
    model, x = linear(), images()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        y = model(x).argmax(1)
        evaluate(model, x, y, attacks={"own": attack}, **{**SETTINGS, "threat": None})
    lines = [str(each.message) for each in caught if "made for another norm" in str(each.message)]
    assert len(lines) == (named is not None)
    assert all(named in line and "'l1'" in line for line in lines)
