"""Targets that draw random numbers and do not say so are scored as those that do."""

import random
import warnings

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from robusttrain.attacks import (
    FixedRandomness,
    HopSkipJump,
    Linf,
    ProjectedGradient,
    Square,
    Target,
)
from robusttrain.core.errors import UserError
from robusttrain.evaluation import Engine, Records, Scenario, settle
from robusttrain.models.defended import DefendedClassifier

COUNT = 34


class Drawing(nn.Module):
    """Logits and noise, from one of the global generators."""

    def __init__(self, model, kind):
        super().__init__()
        self.model, self.kind = model, kind

    def forward(self, images):
        if self.kind == "dropout":
            return self.model(F.dropout(images, 0.2, training=True))
        logits = self.model(images)
        shape = tuple(logits.shape)
        if self.kind == "torch":
            return logits + 2 * torch.randn(shape)
        if self.kind == "numpy":
            return logits + 2 * torch.from_numpy(np.random.standard_normal(shape)).float()  # noqa: NPY002
        return logits + 2 * torch.tensor([[random.gauss(0, 1) for _ in row] for row in logits])


KINDS = ["torch", "numpy", "python", "dropout"]
PGD = {"pgd": Scenario(ProjectedGradient(2, 0.005, threat=Linf(0.01)), Target())}


def evaluated(model, images, labels, size=COUNT, order=None, seed=0, scenarios=None, draws=3):
    """Records by image, from batches of this size in this order."""
    order = torch.arange(COUNT) if order is None else order
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        engine = Engine(
            model, PGD if scenarios is None else scenarios, seed, draws, keep_images=True
        )
        parts = [engine.run(images[which], labels[which], which)[0] for which in order.split(size)]
    return engine, Records.merged(parts)


@pytest.mark.parametrize("kind", KINDS)
def test_verdicts_depend_on_the_seed_and_on_nothing_else(kind, images, linear):
    model, x, labels = Drawing(linear(scale=1.0), kind), images(COUNT), torch.arange(COUNT) % 3
    before = torch.get_rng_state(), np.random.get_state()[1].tolist(), random.getstate()  # noqa: NPY002
    engine, whole = evaluated(model, x, labels)
    assert engine.random
    assert engine.target.random
    assert engine.draws == 3
    assert whole.of("pgd").score.shape == (COUNT, 3)
    assert not torch.equal(whole.of("pgd").score, whole.of("pgd").select)
    assert torch.equal(before[0], torch.get_rng_state())
    assert before[1:] == (np.random.get_state()[1].tolist(), random.getstate())  # noqa: NPY002
    shuffled = torch.randperm(COUNT, generator=torch.Generator().manual_seed(0))
    for size, order in ((1, None), (7, None), (32, None), (16, shuffled)):
        torch.manual_seed(size)  # what goes on outside does not matter
        _, other = evaluated(model, x, labels, size, order)
        for name in ("clean", "pgd"):
            assert torch.equal(other.of(name).score, whole.of(name).score), (size, name)
            assert torch.equal(other.of(name).select, whole.of(name).select), (size, name)
        torch.testing.assert_close(
            other.of("pgd").images, whole.of("pgd").images, rtol=0, atol=1e-5
        )
    _, other = evaluated(model, x, labels, seed=1)
    assert not torch.equal(other.of("clean").score, whole.of("clean").score)


@pytest.mark.parametrize("kind", KINDS)
def test_it_is_told_how_to_make_it_fast(kind, images, linear):
    engine = Engine(Drawing(linear(), kind), {}, draws=2)
    with pytest.warns(UserWarning, match="takes_rng = True"):
        engine.ask(images(), torch.arange(4))


def test_query_attacks_treat_the_source_as_random(images, linear):
    model, x, labels = Drawing(linear(scale=1.0), "torch"), images(COUNT), torch.arange(COUNT) % 3
    scenarios = {
        "square": Scenario(Square(12, votes=2, threat=Linf(0.05)), Target()),
        "hsj": Scenario(
            HopSkipJump(1, 4, votes=3, tries=4, search_steps=4, threat=Linf(0.05)), Target()
        ),
    }
    engine, found = evaluated(model, x, labels, scenarios=scenarios)
    assert all(source.random for source in engine.sources.values())
    # No image leaves: on a deterministic source those that are wrong would.
    assert found.of("square").queries.unique().tolist() == [10.0]


def test_a_classifier_that_takes_streams_is_given_them(images, random_linear):
    """What the warning advises."""
    model, x, labels = random_linear(scale=1.0), images(COUNT), torch.arange(COUNT) % 3
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        engine = Engine(model, PGD, draws=3)
        assert engine.random
        engine.ask(x, torch.arange(COUNT))
    _, whole = evaluated(model, x, labels)
    _, other = evaluated(DefendedClassifier(None, model), x, labels, 7)
    assert torch.equal(whole.of("pgd").score, other.of("pgd").score)
    assert not torch.equal(whole.of("clean").score[:, 0], whole.of("clean").score[:, 1])


def test_a_deterministic_target_stays_one(images, linear):
    engine, found = evaluated(linear(), images(COUNT), torch.arange(COUNT) % 3)
    assert not engine.random
    assert found.of("pgd").score.shape == (COUNT, 1)


def test_who_draws_for_some_images_only_must_say_so(images, linear):
    class Sometimes(nn.Module):
        def forward(self, images):
            logits = linear()(images)
            return logits + torch.randn_like(logits) if (images > 0.81).any() else logits

    model, dark = Sometimes(), images(8)
    engine = Engine(model, {}, draws=3)
    engine.run(dark, torch.arange(8) % 3, torch.arange(8))
    with pytest.raises(UserError, match="random = True"):
        engine.run(dark + 0.2, torch.arange(8) % 3, torch.arange(8, 16))
    model.random = True
    engine = Engine(model, {}, draws=3)
    for shift in (0.0, 0.2):
        records, _ = engine.run(dark + shift, torch.arange(8) % 3, torch.arange(8))
        assert records.of("clean").score.shape == (8, 3)


class Rarely(nn.Module):
    """Noise, from a generator that nobody can seed, for bright images alone."""

    def __init__(self, model):
        super().__init__()
        self.model, self.own = model, np.random.default_rng(0)

    def forward(self, images):
        logits = self.model(images)
        noise = torch.from_numpy(self.own.standard_normal(tuple(logits.shape))).float()
        return logits + noise * (images.amax(dim=(1, 2, 3)) > 0.81)[:, None]


def test_a_generator_of_its_own_that_seldom_matters_is_found_in_the_first_batch(images, linear):
    """Not among the first few images, which are asked about before all others."""
    some = images(12)
    some[10] += 0.2
    target = DefendedClassifier(None, Rarely(linear()))
    assert settle(target, some, torch.arange(12))
    engine = Engine(Rarely(linear()), PGD, draws=3)
    records, _ = engine.run(some, torch.arange(12) % 3, torch.arange(12))
    assert engine.random
    assert records.of("pgd").score.shape == (12, 3)


def test_a_generator_of_its_own_that_matters_later_is_not_taken_for_none(images, linear):
    dark = images(4)
    engine = Engine(Rarely(linear()), PGD, draws=3)
    engine.run(dark, torch.arange(4) % 3, torch.arange(4))
    with pytest.raises(UserError, match="random = True"):
        engine.run(dark + 0.2, torch.arange(4) % 3, torch.arange(4, 8))


class OneForAll(nn.Module):
    """One number for all images of a pass, from a generator that nobody can seed."""

    def __init__(self, model, random):
        super().__init__()
        self.model, self.own = model, np.random.default_rng(0)
        if random:
            self.random = True

    def forward(self, images):
        logits = self.model(images)
        noise = 3 * torch.linspace(-1, 1, logits.shape[1]) * float(self.own.standard_normal())
        return logits + noise


@pytest.mark.parametrize("says", [False, True])
def test_draws_of_a_generator_of_its_own_are_as_many_as_are_scored(says, images, linear):
    """All copies of one pass would have one draw: ten of them would score as one."""
    engine = Engine(OneForAll(linear(), says), PGD, draws=12)
    with pytest.warns(UserWarning, match="a generator .* of its own that no seed reaches"):
        records, _ = engine.run(images(6), torch.arange(6) % 3, torch.arange(6))
    shares = records.of("clean").score.float().mean(dim=1)
    assert ((shares > 0) & (shares < 1)).any()
    with pytest.warns(UserWarning, match="a generator .* of its own that no seed reaches"):
        PGD["pgd"](OneForAll(linear(), says), images(6), torch.arange(6) % 3)


def test_a_target_that_was_asked_can_be_attacked_on_a_fixed_draw(images, linear):
    """Whether there is a draw to fix is known once it was asked, and not before."""
    fixed = {
        "fixed": Scenario(PGD["pgd"].attack, FixedRandomness(inner=Target())),
    }
    target = DefendedClassifier(None, Drawing(linear(scale=1.0), "torch"))
    with pytest.raises(
        UserError, match=r"attack fixed: source FixedRandomness.*settle asks a model"
    ):
        Engine(target, fixed)
    assert settle(target, images(COUNT), torch.arange(COUNT))
    assert target.random
    engine, _ = evaluated(target, images(COUNT), torch.arange(COUNT) % 3, scenarios=fixed)
    assert engine.random
    quiet = DefendedClassifier(None, linear())
    assert not settle(quiet, images(COUNT), torch.arange(COUNT))
    with pytest.raises(UserError, match="draws nothing"):
        Engine(quiet, fixed)
