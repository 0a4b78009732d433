"""Bisection over epsilon: closed forms, costs, and what comes back where nothing succeeds."""

from dataclasses import replace

import pytest
import torch

from robusttrain.attacks import (
    APGD,
    FAB,
    L2,
    GenAttack,
    Linf,
    Margin,
    MinimalNorm,
    ProjectedGradient,
    Restarts,
)
from robusttrain.attacks.algorithms import minimal_norm, wrappers
from robusttrain.attacks.ray import TRIES
from robusttrain.core.errors import OptionError

FGSM = ProjectedGradient(1, relative_step_size=1.0, random_start=False)


def closed_form(model, x, labels, norm):
    """Distance of a linear model's boundary between two classes."""
    w = model.weight[1 - labels] - model.weight[labels]
    dual = w.abs().sum(dim=1) if norm == "linf" else w.norm(dim=1)
    return -Margin()(model(x), labels).detach() / dual.detach()


@pytest.mark.parametrize(
    ("attack", "threat"), [(FGSM, Linf(0.2)), (APGD(10), L2(3.0)), (FAB(5), Linf(0.2))], ids=str
)
def test_a_linear_models_distance_is_found_to_one_step_of_the_grid(
    attack, threat, linear, images, streams
):
    model, x = linear(2), images(32)
    labels = model(x).argmax(1)
    found = MinimalNorm(attack, 8, threat=threat)(model, x, labels, streams(32))
    expected = closed_form(model, x, labels, threat.norm)
    assert expected.max() < threat.epsilon
    distance = threat.distance(found, x)
    assert (model(found).argmax(1) != labels).all()
    assert (distance >= expected - 1e-6).all()
    assert (distance <= expected + 1.05 * threat.epsilon / 2**8).all()


def test_where_nothing_succeeds_the_first_run_comes_back(linear, images, streams):
    model, x = linear(2), images(32)
    labels = model(x).argmax(1)
    expected = closed_form(model, x, labels, "linf")
    threat = Linf(expected.median().item())
    attack = MinimalNorm(FGSM, 6, threat=threat)
    found = attack(model, x, labels, streams(32))
    far = expected > threat.epsilon
    assert 0 < far.sum() < 32
    assert torch.equal(found[far], replace(FGSM, threat=threat)(model, x, labels, streams(32))[far])
    assert attack.threat.distance(found, x).max() <= threat.epsilon + 1e-6


def test_images_that_are_wrong_already_come_back_as_they_were(curved, images, streams):
    model, x = curved(), images(8)
    labels = (model(x).argmax(1) + torch.arange(8) % 2) % 4
    found = MinimalNorm(APGD(5), 5, threat=Linf(0.3))(model, x, labels, streams(8))
    assert torch.equal(found[1::2], x[1::2])
    assert (found[::2] != x[::2]).flatten(1).any(dim=1).all()


def test_on_a_random_model_luck_is_no_success(streams):
    """Right in 70 % of draws, whatever the image: nothing within the threat succeeds."""

    class Doubtful(torch.nn.Module):
        takes_rng = True

        def forward(self, images, rng):
            wrong = (rng.uniform(()) < 0.3).float() + 0 * images.sum(dim=(1, 2, 3))
            return torch.stack([1 - wrong, wrong], dim=1)

    x, labels = torch.full((50, 1, 2, 2), 0.5), torch.zeros(50, dtype=torch.int64)
    noise = ProjectedGradient(0, step_size=0.1)
    distances = []
    for votes in (30, 1):
        attack = MinimalNorm(noise, 4, votes, Linf(0.2))
        distances.append(attack.threat.distance(attack(Doubtful(), x, labels, streams(50)), x))
    assert (distances[0] > 0.05).float().mean() > 0.9  # the first run: one noise of the whole ball
    assert distances[1].mean() < distances[0].mean()


@pytest.mark.parametrize("random_model", [False, True])
def test_declared_cost_bounds_what_the_model_sees(
    random_model, curved, random_linear, counting, images, streams
):
    model = counting(random_linear(10) if random_model else curved(10))
    model.random = random_model
    x = images()
    attack = MinimalNorm(APGD(3), 4, 5, Linf(0.5))
    labels = model.model(x).argmax(1)
    attack(model, x, labels, streams())
    cost = attack.cost()
    assert cost == (4 * 5, 2 + 5 * (2 + 5) + TRIES * 5)
    assert 0 < model.gradients <= 4 * cost.gradients
    assert model.queries <= 4 * cost.queries


def test_an_image_is_attacked_alone_as_in_its_batch(curved, random_linear, images, streams):
    attack = MinimalNorm(Restarts(APGD(3), 2), 4, 3, Linf(0.3))
    for model in (curved(), random_linear(4)):
        labels, order = torch.arange(8) % 3, torch.tensor([6, 0, 3])
        whole = attack(model, images(8), labels, streams(8))
        assert torch.equal(attack(model, images(8), labels, streams(8)), whole)
        part = attack(model, images(8)[order], labels[order], streams(8)[order])
        assert ((part - whole[order]).abs() < 1e-5).double().mean() > 0.99


PLAIN = MinimalNorm(APGD(5), 3, threat=Linf(0.2))


@pytest.mark.parametrize(
    "change",
    [{"attack": APGD(1)}, {"steps": 6}, {"threat": L2(2.0)}, {"threat": Linf(0.3)}],
    ids=str,
)
def test_every_field_changes_the_outcome(change, curved, images, streams):
    model, x = curved(), images(8)
    labels = model(x).argmax(1)
    plain = PLAIN(model, x, labels, streams(8))
    assert (replace(PLAIN, **change)(model, x, labels, streams(8)) - plain).abs().max() > 1e-4


def test_epsilon_zero_returns_the_images(curved, images, streams):
    model, x = curved(), images(8)
    found = MinimalNorm(APGD(3), 3, threat=Linf(0.0))(model, x, model(x).argmax(1), streams(8))
    assert torch.equal(found, x)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"steps": -1}, "steps = -1: must be at least 0"),
        ({"steps": 30}, "steps = 30: must be at most 20"),
        ({"votes": 0}, "votes = 0"),
        ({"attack": GenAttack(), "threat": L2()}, r"attack\.threat"),
    ],
)
def test_bad_options_are_one_line(options, words):
    with pytest.raises(OptionError, match=words):
        MinimalNorm(**{"attack": APGD(), **options})


def test_no_draw_that_selected_judges(unsure, streams, monkeypatch):
    """The attack inside is a wrapper, which judges its own candidates."""
    seen = {"inside": set(), "outside": set()}

    def noting(where, judge):
        def note(source, points, labels, random, rng, votes, alike):
            seen[where] |= {*rng.keys.tolist()}
            return judge(source, points, labels, random, rng, votes, alike)

        return note

    monkeypatch.setattr(wrappers, "judge", noting("inside", wrappers.judge))
    monkeypatch.setattr(minimal_norm, "judge", noting("outside", minimal_norm.judge))
    attack = MinimalNorm(Restarts(FGSM, restarts=2, votes=6), steps=2, votes=6, threat=Linf(0.3))
    x, y = torch.full((2, 1, 4, 4), 0.5), torch.zeros(2, dtype=torch.int64)
    attack(unsure, x, y, streams(2))
    assert seen["inside"]
    assert seen["outside"]
    assert not seen["inside"] & seen["outside"]
