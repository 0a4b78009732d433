"""What a measurement of transfer counts, refuses and doubts."""

import pytest
import torch
from torch import nn

from robusttrain.attacks import (
    L2,
    CarliniWagner,
    Checkpoint,
    Ensemble,
    FewerSteps,
    FixedRandomness,
    GenAttack,
    Linf,
    OtherModel,
    ProjectedGradient,
    RandomNoise,
    Target,
)
from robusttrain.core.errors import UserError
from robusttrain.data import Batch
from robusttrain.evaluation import Scenario
from robusttrain.models.defended import DefendedClassifier
from robusttrain.running.transferring import at_chance, refuse_own_models, tell_other_parts
from robusttrain.transfer.commonly_correct import CommonlyCorrect
from robusttrain.transfer.crafting import Crafting, Model, Planned
from robusttrain.transfer.measuring import part_of_results
from robusttrain.transfer.minimal_distortion import minimal_distortion
from robusttrain.transfer.plan import TransferPlan

PASSES = {"gradients": 0, "queries": 0}


class Counted(nn.Module):
    """Counts the images that pass, outside of itself."""

    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, images):
        graph = torch.is_grad_enabled() and images.requires_grad
        PASSES["gradients" if graph else "queries"] += len(images)
        return self.model(images)


@pytest.mark.parametrize(
    "attack",
    [
        GenAttack(20, threat=Linf(0.1)),
        CarliniWagner(10, search_steps=2, threat=L2(1.0)),
        ProjectedGradient(3, threat=Linf(0.1)),
    ],
    ids=lambda each: type(each).__name__,
)
def test_evaluations_are_those_that_were_made(attack, linear, images, tmp_path, monkeypatch):
    """And the same once the images are stored: not the bound that the attack states."""
    model = linear()
    model.bias.data -= model.weight.data.sum(1) / 2
    x = images(6)
    labels = model(x).argmax(1)
    crafting = Crafting(
        {"a": Model(DefendedClassifier(None, Counted(model)))},
        {"one": Planned(Scenario(attack, Target()))},
        folder=tmp_path,
    )
    indices = torch.arange(6)
    batches = [Batch(x[part], labels[part], indices[part]) for part in (slice(0, 4), slice(4, 6))]
    spent = {"gradients": 0, "queries": 0}
    plain = type(attack).__call__

    def watched(self, *given):
        PASSES.update(gradients=0, queries=0)
        adversarial = plain(self, *given)
        for kind, count in PASSES.items():
            spent[kind] += count
        return adversarial

    monkeypatch.setattr(type(attack), "__call__", watched)
    first = crafting.run("one", ["a"], ["a"], batches, 1)
    expected = spent["gradients"] / 6, spent["queries"] / 6
    assert (first.gradients, first.queries) == pytest.approx(expected)
    again = crafting.run("one", ["a"], ["a"], batches, 1)
    assert again.seconds == 0
    assert (again.gradients, again.queries) == (first.gradients, first.queries)
    row = part_of_results({"a": first}, {})
    assert row["queries_per_image"] == round(expected[1], 2)
    assert row["gradient_evaluations_per_image"] == round(expected[0], 2)


class Noisy(nn.Module):
    """Draws from a generator of its own, which nobody sees or seeds."""

    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, images):
        logits = self.model(images)
        return logits + 0.01 * torch.randn(logits.shape, generator=NOISE)


NOISE = torch.Generator().manual_seed(0)


@pytest.mark.parametrize("noisy", [False, True])
def test_attacks_by_queries_are_told_that_a_source_is_random(noisy, linear, images, monkeypatch):
    """They took lucky draws for successes of a model that repeats itself."""
    model = linear()
    x = images(4)
    labels = model(x).argmax(1)
    seen = []
    plain = GenAttack.run

    def watched(self, source, *given):
        seen.append(source.random)
        return plain(self, source, *given)

    monkeypatch.setattr(GenAttack, "run", watched)
    made = Noisy(model) if noisy else model
    crafting = Crafting(
        {"a": Model(DefendedClassifier(None, made))},
        {"one": Planned(Scenario(GenAttack(2, threat=Linf(0.01)), Target()))},
    )
    batches = [Batch(x[k : k + 2], labels[k : k + 2], torch.arange(k, k + 2)) for k in (0, 2)]
    crafting.run("one", ["a"], ["a"], batches, 1)
    assert seen == [noisy, noisy]


@pytest.mark.parametrize(
    "source",
    [
        Checkpoint("theirs.ckpt"),
        Ensemble([Target(), Checkpoint("theirs.ckpt")]),
        Ensemble([Ensemble([Checkpoint("theirs.ckpt")])]),
        FixedRandomness(inner=Checkpoint("theirs.ckpt")),
        FewerSteps(inner=Ensemble([Checkpoint("theirs.ckpt")])),
    ],
)
def test_a_model_of_the_attackers_own_is_no_source_of_the_plans(source):
    """Its rows would say that the images come from the plan's models."""
    assert [type(each) for each in source.others] == [Checkpoint]
    with pytest.raises(UserError, match="--attack theirs: brings a source model of its own"):
        refuse_own_models({"theirs": Planned(Scenario(ProjectedGradient(), source))})


def test_a_source_around_another_model_is_no_white_box_of_the_bare_classifier():
    """Its figure without the defense would be that of another attacker."""
    around = FixedRandomness(inner=Checkpoint("theirs.ckpt"))
    assert around.on_classifier() == around
    assert FixedRandomness().on_classifier() == Target()
    assert FewerSteps().on_classifier() == Target()


def test_sources_of_the_target_alone_are_not_refused(linear):
    plain = [Target(), Ensemble([Target(), FixedRandomness()]), FewerSteps()]
    refuse_own_models(
        {
            str(number): Planned(Scenario(ProjectedGradient(), each))
            for number, each in enumerate(plain)
        }
    )
    assert len(Ensemble([OtherModel(linear()), OtherModel(linear())]).others) == 2


def test_a_model_that_guesses_is_told():
    common = CommonlyCorrect(torch.arange(2), 40, {"a": 0.95, "b": 0.05})
    (line,) = at_chance(common, 10)
    assert line.startswith("warning: b: is right on 2 of 40 images, which chance explains")
    assert not at_chance(common._replace(accuracy={"a": 0.95, "b": 0.5}), 10)
    assert not at_chance(common._replace(candidates=8, accuracy={"b": 0.0}), 10)


class LateNoise(nn.Module):
    """Draws for dark images alone."""

    takes_rng = True
    random = False

    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, images, rng=None):
        noise = 0 if rng is None else rng.normal((2,))
        dark = (images.flatten(1).amax(dim=1) < 0.5)[:, None]
        return self.model(images) + dark * noise


def test_a_target_that_is_random_for_a_late_image_is_random(linear, images):
    """Eight images were asked about, and the ninth was scored by one draw."""
    x = torch.cat([images(9) * 0.4 + 0.6, images(1) * 0.4])
    model = linear(2)
    target = DefendedClassifier(None, LateNoise(model))
    attack = Planned(Scenario(RandomNoise(22, threat=Linf(0.01)), Target()))
    crafting = Crafting(
        {"a": Model(DefendedClassifier(None, model)), "b": Model(target)}, {"one": attack}, draws=3
    )
    batches = [Batch(x, model(x).argmax(dim=1), torch.arange(10))]
    crafted = crafting.run("one", ["a"], ["b"], batches, 1)
    assert crafted.classes["b"].shape[1] == 3
    with pytest.raises(UserError, match="deterministic"):
        minimal_distortion([model, target], x, torch.ones_like(x), torch.zeros(10).long())


def test_other_weights_or_images_under_the_same_names_are_told(tmp_path):
    plan = TransferPlan(["a", "b"], {}, {"class_path": "robusttrain.data.Digits"})
    parts = {"weights": {"a": "1", "b": "2"}, "data_hash": "3"}
    before = {**parts, "plan": plan.to_json()}

    def said(now, then=before):
        lines = []
        tell_other_parts(then, plan, now, tmp_path, lines.append)
        return lines

    assert said(parts) == said(parts, {}) == []
    (line,) = said({**parts, "weights": {"a": "1", "b": "4"}})
    assert "takes the place of a measurement that differs in weights.b: there 2, now 4;" in line
    (line,) = said({**parts, "data_hash": "5"})
    assert "differs in data_hash: there 3, now 5;" in line
    other = {**before, "plan": {**plan.to_json(), "seed": 1}}
    assert said({**parts, "data_hash": "5"}, other) == [], "of another plan it is told before"
