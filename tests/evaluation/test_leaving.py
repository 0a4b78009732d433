"""Images leave an attack once their verdict is settled: same verdicts, fewer evaluations."""

from dataclasses import dataclass, replace

import pytest
import torch
from torch import nn

import robusttrain
from robusttrain.attacks import (
    APGD,
    FAB,
    L2,
    Attack,
    Average,
    CarliniWagner,
    ClassifierOnly,
    Cost,
    DeepFool,
    IdentityBackward,
    Linf,
    MinimalNorm,
    ProjectedGradient,
    Several,
    Smooth,
    Square,
    Target,
    TargetedDLR,
)
from robusttrain.attacks.leaving import EVERY, Leaving
from robusttrain.core.rng import Rng
from robusttrain.defenses import Defense
from robusttrain.evaluation import Engine, Scenario
from robusttrain.models.defended import DefendedClassifier

COUNT = 24
LINF, EUCLIDEAN = Linf(0.03), L2(0.25)
ATTACKS = {
    "pgd": ProjectedGradient(steps=30, threat=LINF),
    "apgd": APGD(steps=30, threat=LINF),
    "apgd-t": APGD(steps=20, targets=3, objective=TargetedDLR(), threat=LINF),
    "fab": FAB(steps=15, targets=3, threat=LINF),
    "square": Square(queries=150, threat=LINF),
    "cw": CarliniWagner(steps=40, search_steps=2, initial_c=1.0, nearest=False, threat=EUCLIDEAN),
    "deepfool": DeepFool(steps=20, threat=EUCLIDEAN),
    "several": Several(
        attacks=[APGD(steps=20), FAB(steps=10, targets=2), Square(queries=60)], threat=LINF
    ),
}
#: Those that go on with an image after a success, unless an evaluation lets it go.
GO_ON = {"pgd", "apgd", "apgd-t", "cw", "several"}


class Counted(nn.Module):
    """A small network that counts the images that it is shown."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.Sequential(
            nn.Conv2d(3, 8, 3, padding=1),
            nn.Tanh(),
            nn.Conv2d(8, 8, 3, stride=2, padding=1),
            nn.Tanh(),
            nn.Flatten(),
            nn.Linear(128, 6),
        )
        self.seen = 0

    def forward(self, images):
        self.seen += len(images)
        return self.layers(images)


class Halved(Defense):
    """Darkens the image, always in the same way."""

    def transform(self, images, rng):
        return images / 2


class Noise(Defense):
    random = True

    def transform(self, images, rng):
        return images + 0.01 * rng.normal(images.shape[1:])


@pytest.fixture(scope="module")
def batch():
    images = Rng.for_images(3, torch.arange(COUNT)).uniform((3, 8, 8))
    with torch.no_grad():
        labels = Counted().eval()(images).argmax(1)
    labels[0] = (labels[0] + 1) % 6  # wrong as it stands
    return images, labels


def run(attack, batch, size=COUNT, model=None, source=None, **options):
    """Records of each batch of that size, of one image after the other."""
    model = model or Counted()
    engine = Engine(
        model, {"it": Scenario(attack, source or Target())}, keep_images=True, **options
    )
    parts = []
    for start in range(0, COUNT, size):
        which = torch.arange(start, min(start + size, COUNT))
        parts.append(engine.run(batch[0][which], batch[1][which], which)[0].of("it"))
    return {
        name: torch.cat([getattr(part, name) for part in parts])
        for name in ("score", "gradients", "queries", "images", "distance")
    }


@pytest.mark.parametrize(
    ("name", "size"),
    [*((each, 7) for each in ATTACKS), ("pgd", COUNT), ("apgd", COUNT), ("pgd", 1), ("apgd", 1)],
)
def test_verdicts_are_those_of_the_dense_run_image_by_image(name, size, batch):
    attack = ATTACKS[name]
    dense = run(attack, batch, leave_early=False)
    spared = run(attack, batch, size)
    fallen = int((~dense["score"]).sum())
    assert 3 <= fallen <= COUNT - 3  # some fall and some stand, or nothing was compared
    assert spared["score"].equal(dense["score"])
    assert (spared["images"] - dense["images"]).abs().max() < 1e-4
    assert attack.threat.distance(spared["images"], batch[0]).max() <= attack.threat.epsilon + 1e-6


@pytest.mark.parametrize("name", ATTACKS)
def test_the_network_is_asked_less(name, batch):
    seen, counted = {}, {}
    for early in (True, False):
        model = Counted()
        records = run(ATTACKS[name], batch, model=model, leave_early=early)
        # The attack differentiates copies of the target; the target itself gives verdicts.
        seen[early] = model.seen
        counted[early] = float(records["gradients"].sum() + records["queries"].sum())
    if name in GO_ON:
        assert counted[True] < 0.9 * counted[False]
    assert counted[True] <= counted[False]
    # An image falls once, so there is at most one confirmation each, and a few in vain.
    assert seen[True] == seen[False] < 5 * COUNT


@pytest.mark.parametrize("name", ["apgd", "apgd-t", "fab", "square", "cw", "deepfool"])
def test_attacks_of_their_own_accord_come_to_the_same_verdicts(name, batch):
    """What the attack returns by itself, without anybody who looks at its passes."""
    images, labels = batch
    model = Counted().eval()
    streams = Rng.for_images(0, torch.arange(COUNT)).fold("attack").fold("it")
    right = model(images).argmax(1) == labels
    alone = ATTACKS[name](model, images[right], labels[right], streams[right])
    spared = run(ATTACKS[name], batch)
    assert (model(alone).argmax(1) == labels[right]).equal(spared["score"][right, 0])


def test_an_attack_without_a_bound_goes_to_its_end(batch):
    """How far it went is its figure, and the first point on the way would be nearer."""
    free = ProjectedGradient(8, 0.05, random_start=False, threat=Linf(1.0))
    dense, spared = (run(free, batch, leave_early=early) for early in (False, True))
    assert torch.equal(dense["images"], spared["images"])
    assert torch.equal(dense["distance"], spared["distance"])


def test_the_option_reaches_the_attacks(batch):
    def evaluated(leave_early):
        found = robusttrain.evaluate(
            Counted(),
            *batch,
            attacks={"it": ATTACKS["pgd"]},
            leave_early=leave_early,
            audit=False,
            progress=False,
        )
        row = found.json["attacks"]["it"]
        return row["robust_accuracy"], row["gradient_evaluations_per_image"]

    early, dense = evaluated(True), evaluated(False)
    assert early[0] == dense[0]
    assert early[1] < dense[1] == 30


def test_the_host_waits_at_the_looks_alone(batch, monkeypatch):
    """Every wait of this kind of loop is a nonzero()."""
    waits, nonzero = [], torch.Tensor.nonzero

    def counted(tensor, *arguments, **named):
        waits.append(len(tensor))
        return nonzero(tensor, *arguments, **named)

    attack = ProjectedGradient(steps=200, threat=LINF)
    run(ATTACKS["pgd"], batch)
    monkeypatch.setattr(torch.Tensor, "nonzero", counted)
    leaving = run(attack, batch)
    looks, falls = 200 // EVERY, int((~leaving["score"]).sum())
    assert looks <= len(waits) <= looks + falls + 5


def test_whom_no_image_leaves(batch):
    def leaves(attack, source=None, model=None):
        engine = Engine(model or Counted(), {"it": Scenario(attack, source or Target())})
        engine.ask(batch[0], torch.arange(COUNT))
        return engine.leaves("it")

    assert leaves(ATTACKS["pgd"])
    defended = DefendedClassifier(Halved(), Counted())
    assert leaves(ATTACKS["pgd"], IdentityBackward(), defended)
    # An attack that looks for the nearest adversarial image, also inside a wrapper
    assert not leaves(CarliniWagner(threat=EUCLIDEAN))
    assert not leaves(MinimalNorm(threat=LINF))
    assert not leaves(replace(ATTACKS["fab"], nearest=True))
    assert not leaves(Several(attacks=[FAB(nearest=True)], threat=LINF))


def test_random_targets_and_attackers_of_another_model_go_on(batch):
    for defense, source in ((Noise(), Target()), (Halved(), ClassifierOnly())):
        target = DefendedClassifier(defense, Counted())
        engine = Engine(target, {"it": Scenario(ATTACKS["pgd"], source)}, draws=2)
        engine.ask(batch[0], torch.arange(COUNT))
        assert not engine.leaves("it")
        records, _ = engine.run(batch[0], batch[1], torch.arange(COUNT))
        rows = records.of("it")
        assert (rows.gradients[rows.attacked] == 30).all()


@pytest.mark.parametrize("gradient", [Smooth(samples=3, sigma=0.01), Average(draws=2)])
def test_stacked_copies_settle_nothing(gradient, batch):
    """A copy with noise is no point of the attack."""
    attack = replace(ATTACKS["pgd"], gradient=gradient)
    early = run(attack, batch)
    dense = run(attack, batch, leave_early=False)
    assert early["images"].equal(dense["images"])
    assert early["gradients"].equal(dense["gradients"])


@dataclass(frozen=True)
class Forgets(Attack):
    """Walks straight over an adversarial point, and back to the image."""

    threat: Linf = LINF

    def run(self, source, images, labels, rng):
        point = ATTACKS["apgd"].run(source, images, labels, rng.fold("inner"))
        for step in range(EVERY):
            source(point, rng.fold(step))
        return images

    def cost(self):
        return Cost(31, 5)


def test_what_settled_a_verdict_is_what_counts(batch):
    found = run(Forgets(), batch)
    kept = run(ATTACKS["apgd"], batch)
    assert (~found["score"]).sum() >= (~kept["score"]).sum() - 1 > 3
    dense = run(Forgets(), batch, leave_early=False)
    assert dense["score"].equal(found["score"])


@dataclass(frozen=True)
class Beyond(Attack):
    """Asks about points outside its threat, and returns the image."""

    threat: Linf = LINF

    def run(self, source, images, labels, rng):
        for step in range(3 * EVERY):
            source(1 - images, rng.fold(step))
        return images

    def cost(self):
        return Cost(0, 3 * EVERY)


def test_points_outside_the_threat_settle_nothing(batch):
    images, labels = batch
    assert (Counted().eval()(1 - images).argmax(1) != labels).any()
    found = run(Beyond(), batch)
    assert found["score"].sum() == COUNT - 1  # the one that is wrong as it stands


def test_only_the_target_settles(batch):
    """Images stay as long as the target's float32 verdict says that they are right."""
    images, labels = batch
    asked = []

    def always_right(points, places):
        asked.append(len(points))
        return torch.ones(len(points), dtype=torch.bool)

    leaving = Leaving(LINF, images, labels, always_right)
    rng = Rng.for_images(0, torch.arange(COUNT)).numbered()
    wrong = torch.nn.functional.one_hot((labels + 1) % 6, 6).float()
    for _ in range(EVERY):
        leaving.ask(lambda points, streams: wrong, images, rng)
    assert asked == [COUNT]
    assert not leaving.settled.any()


def test_where_nobody_stands_there_is_a_zero_derivative(batch):
    images, labels = batch

    def never_right(points, places):
        return torch.zeros(len(points), dtype=torch.bool)

    leaving = Leaving(LINF, images, labels, never_right)
    rng = Rng.for_images(0, torch.arange(COUNT)).numbered()
    wrong = torch.nn.functional.one_hot((labels + 1) % 6, 6).float()
    for _ in range(EVERY):
        leaving.ask(lambda points, streams: wrong, images, rng)
    points = images.clone().requires_grad_()
    logits = leaving.ask(lambda points, streams: pytest.fail("asked"), points, rng)
    (gradient,) = torch.autograd.grad(logits.sum(), points)
    assert logits.detach().equal(wrong)
    assert not gradient.any()


def test_streams_say_whose_they_are():
    rng = Rng.for_images(0, torch.arange(4)).numbered()
    assert rng.fold("a")[torch.tensor([2, 0])].fold(1).rows.tolist() == [2, 0]
    assert rng.tile(2).rows is None
    assert Rng.for_images(0, torch.arange(4)).fold(1).rows is None
