"""GenAttack: what a population can reach, decisions that flicker, and Foolbox's at equal
budgets.
"""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from robusttrain.attacks import L2, GenAttack, HopSkipJump, Linf, Target
from robusttrain.core.errors import OptionError
from robusttrain.defenses import AdversarialTransform
from robusttrain.evaluation import Engine, Scenario
from robusttrain.models.defended import DefendedClassifier

SHORT = GenAttack(steps=20, threat=Linf(0.1))


def still(model, counting):
    """A counting model that says that it draws nothing."""
    counted = counting(model)
    counted.random = False
    return counted


@pytest.mark.parametrize(("share", "steps"), [(0.7, 100), (2.0, 500)])
def test_a_linear_model_falls_where_the_ball_reaches_its_boundary(
    share, steps, linear, images, streams
):
    """The boundary is at margin / |w|_1: within twice that, 500 generations get there; within 0.7,
    nothing does.
    """
    model, x = linear(classes=2), images()
    y = model(x).argmax(1)
    w = (model.weight[0] - model.weight[1]).detach()
    distance = (x.flatten(1) @ w + model.bias[0] - model.bias[1]).abs().detach() / w.abs().sum()
    for i in range(len(x)):
        one = slice(i, i + 1)
        attack = GenAttack(steps=steps, threat=Linf(share * distance[i].item()))
        found = attack(model, x[one], y[one], streams()[one])
        assert attack.threat.distance(found, x[one]) <= attack.threat.epsilon + 1e-6
        assert (model(found).argmax(1) != y[one]).all() == (share > 1)


@pytest.mark.parametrize("target", ["least_likely", "second", "random"])
def test_targeted_attacks_end_at_their_target(target, linear, images, streams):
    model, x = linear(classes=4), images()
    logits = model(x)
    y = logits.argmax(1)
    found = GenAttack(steps=600, target=target, threat=Linf(0.3))(model, x, y, streams())
    reached = model(found).argmax(1)
    assert (reached != y).all()
    if target == "least_likely":
        assert torch.equal(reached, logits.argmin(1))
    if target == "second":
        assert torch.equal(reached, logits.topk(2).indices[:, 1])


def test_untargeted_tries_the_likeliest_other_classes(images, streams):
    """The likeliest wrong class cannot be reached; the second can."""

    class Guarded(nn.Module):
        def forward(self, images):
            mean = images.mean(dim=(1, 2, 3))
            return torch.stack(
                [torch.zeros_like(mean), -0.01 - 0 * mean, 400 * (mean - 0.5) - 3], dim=1
            )

    x, y = 0.5 + 0 * images(), torch.zeros(4, dtype=torch.int64)
    attack = GenAttack(steps=100, classes=2, threat=Linf(0.05))
    assert (Guarded()(x).argmax(1) == 0).all()
    assert (Guarded()(attack(Guarded(), x, y, streams())).argmax(1) == 2).all()
    assert (Guarded()(replace(attack, classes=1)(Guarded(), x, y, streams())).argmax(1) == 0).all()


def test_fitness_is_the_papers_and_exact_where_the_model_is_sure(images, streams):
    class Sure(nn.Module):
        def forward(self, images):
            return images.new_tensor([200.0, 0.0, -1.0]).expand(len(images), 3)

    zeros = torch.zeros(2, dtype=torch.int64)
    fitness, margins = GenAttack().judge(
        Sure(), images(6).view(2, 3, 3, 8, 8), zeros, zeros + 1, streams(2)
    )
    torch.testing.assert_close(fitness, torch.full((2, 3), -200.0))
    torch.testing.assert_close(margins, torch.full((2, 3), -200.0))

    class Mild(nn.Module):
        def forward(self, images):
            return images[:, :, 0, 0]

    x = images(2)
    p = x[:, :, 0, 0].softmax(1)
    fitness, _ = GenAttack().judge(Mild(), x[:, None], zeros, zeros + 2, streams(2))
    torch.testing.assert_close(fitness[:, 0], p[:, 2].log() - p[:, :2].sum(1).log())


def test_a_vote_is_the_mean_of_probabilities(random_linear, images, streams):
    model, x, zeros = random_linear(), images(2), torch.zeros(2, dtype=torch.int64)
    fitness, _ = GenAttack(votes=5).judge(model, x[:, None], zeros, zeros, streams(2))
    draws = streams(2).tile(1)
    p = torch.stack([model(x, draws.tile(range(k, k + 1))).softmax(1) for k in range(5)]).mean(0)
    torch.testing.assert_close(fitness[:, 0], (p[:, 0] / p[:, 1:].sum(1)).log().detach())


def test_parents_and_their_pixels_are_drawn_by_fitness(streams):
    """Member k is all k; of fitness (0, 1, 2) at temperature 1, a child's pixels show p_1 / (p_1 +
    p_2) of each.
    """
    population = torch.arange(3.0).view(1, 3, 1, 1, 1).expand(1, 3, 1, 64, 64)
    fitness = torch.tensor([[0.0, 1.0, 2.0]])
    attack = GenAttack(population=3, temperature=1.0)
    p = fitness.softmax(1)[0]
    pairs: dict[tuple[int, ...], list[float]] = {}
    for t in range(300):
        for child in attack.breed(population, fitness, streams(1).fold(t))[0]:
            parents = tuple(child.unique().int().tolist())
            share = (child == parents[-1]).double().mean().item() if len(parents) == 2 else 0.0
            pairs.setdefault(parents, []).append(share)
    for (one, other), chance in {
        (0, 1): 2 * p[0] * p[1],
        (0, 2): 2 * p[0] * p[2],
        (1, 2): 2 * p[1] * p[2],
    }.items():
        shares = pairs[(one, other)]
        assert len(shares) / 600 == pytest.approx(chance.item(), abs=0.06)
        assert np.mean(shares) == pytest.approx((p[other] / (p[one] + p[other])).item(), abs=0.01)


@pytest.mark.parametrize(
    ("adaptive", "plateaus", "rho", "alpha"), [(False, 0, 0.05, 0.25), (True, 0, 0.5, 0.4)]
)
def test_mutation_has_its_probability_and_range(adaptive, plateaus, rho, alpha, streams):
    attack = GenAttack(adaptive=adaptive, threat=Linf(0.1))
    children = torch.full((1, 3, 3, 64, 64), 0.5)
    change = (attack.mutate(children, torch.tensor([plateaus]), streams(1)) - 0.5).flatten()
    moved = change[change != 0]
    assert len(moved) / len(change) == pytest.approx(rho, abs=0.01)
    assert moved.abs().max() == pytest.approx(alpha * 0.1, rel=0.01)
    assert moved.std().item() == pytest.approx(alpha * 0.1 / math.sqrt(3), rel=0.05)
    assert moved.mean().item() == pytest.approx(0, abs=0.001)


def test_mutation_falls_with_each_plateau_to_its_floor(streams):
    attack, children = GenAttack(threat=Linf(0.1)), torch.full((3, 1, 3, 64, 64), 0.5)
    change = attack.mutate(children, torch.tensor([0, 4, 200]), streams(3)) - 0.5
    shares = (change != 0).double().mean(dim=(1, 2, 3, 4))
    torch.testing.assert_close(
        shares, torch.tensor([0.5, 0.5 * 0.9**4, 0.05]).double(), rtol=0, atol=0.02
    )
    ranges = change.abs().amax(dim=(1, 2, 3, 4)) / 0.1
    torch.testing.assert_close(ranges, torch.tensor([0.4, 0.4 * 0.9**4, 0.25]), rtol=0.01, atol=0)


def test_inside_ball_and_box(curved, random_linear, streams):
    x = (2 * torch.rand(8, 3, 8, 8, generator=torch.Generator().manual_seed(3)) - 0.5).clamp(0, 1)
    for model in (curved(), random_linear(4)):
        found = SHORT(model, x, torch.arange(8) % 3, streams(8))
        assert SHORT.threat.distance(found, x).max() <= 0.1 + 1e-6
        assert found.min() >= 0
        assert found.max() <= 1


def test_one_seed_one_result(curved, random_linear, images, streams):
    attack = replace(SHORT, votes=2)
    for model in (curved(), random_linear(4)):
        first = attack(model, images(8), torch.arange(8) % 3, streams(8))
        assert torch.equal(attack(model, images(8), torch.arange(8) % 3, streams(8)), first)
        assert not torch.equal(
            attack(model, images(8), torch.arange(8) % 3, streams(8, seed=1)), first
        )


def test_an_image_is_attacked_alone_as_in_its_batch(curved, random_linear, images, streams):
    """Others leave the batch at other times, and that changes nothing."""
    attack, x, order = replace(SHORT, threat=Linf(0.05)), images(8), torch.tensor([6, 0, 3])
    for model in (curved(), random_linear(4)):
        y = torch.arange(8) % 3 if hasattr(model, "takes_rng") else model(x).argmax(1)
        whole = attack(model, x, y, streams(8))
        part = attack(model, x[order], y[order], streams(8)[order])
        assert ((part - whole[order]).abs() < 1e-5).double().mean() > 0.999


@pytest.mark.parametrize("change", [{}, {"target": "second"}, {"votes": 3}, {"steps": 1}], ids=str)
def test_cost_is_an_upper_bound(change, curved, random_linear, counting, images, streams):
    attack = replace(SHORT, threat=Linf(0.001), **change)
    cost = attack.cost()
    y = curved()(images()).argmax(1)
    counted = counting(random_linear(4))
    attack(counted, images(), y, streams())
    # Nothing leaves, all classes are tried
    assert (counted.gradients, counted.queries) == (
        0,
        4 * cost.queries,
    )
    counted = still(curved(), counting)
    attack(counted, images(), y, streams())
    targets = attack.targets
    each = 1 + targets * (attack.population + (attack.steps - 1) * (attack.population - 1))
    assert counted.queries == 4 * attack.votes * each <= 4 * cost.queries


def test_images_leave_when_they_are_done(curved, counting, images, streams):
    counted, x = still(curved(), counting), images(8)
    y = curved()(x).argmax(1)
    attack = replace(SHORT, steps=200, threat=Linf(0.3))
    found = attack(counted, x, y, streams(8))
    assert (curved()(found).argmax(1) != y).all()
    assert counted.queries < 0.05 * 8 * attack.cost().queries


def test_a_random_model_is_never_asked_twice_with_the_same_streams(
    random_linear, counting, images, streams
):
    counted = counting(random_linear(4))
    replace(SHORT, votes=2, steps=4)(counted, images(8), torch.arange(8) % 3, streams(8))
    assert len(counted.keys) == len(set(counted.keys)) == counted.queries


class Coin(nn.Module):
    """Answers at random, whatever it sees."""

    takes_rng = True

    def forward(self, images, rng):
        return rng.fold("coin").normal((3,))


@pytest.mark.parametrize("votes", [1, 4])
def test_a_verdict_that_flickers_neither_crashes_nor_hangs(votes, counting, images, streams):
    attack, counted = replace(SHORT, votes=votes), counting(Coin())
    found = attack(counted, images(8), torch.arange(8) % 3, streams(8))
    assert found.isfinite().all()
    assert attack.threat.distance(found, images(8)).max() <= 0.1 + 1e-6
    assert counted.queries <= 8 * attack.cost().queries


def test_a_random_model_is_wrong_more_often_afterwards(random_linear, images, streams):
    model, x = random_linear(3), images(8)
    many = [streams(8, seed=9).fold(k) for k in range(200)]

    def right(points: Tensor, labels: Tensor) -> Tensor:
        return (
            torch.stack([model(points, rng).argmax(1) == labels for rng in many]).double().mean(0)
        )

    labels = torch.stack([model(x, rng) for rng in many]).softmax(2).mean(0).argmax(1)
    attack = GenAttack(steps=200, votes=5, classes=1, threat=Linf(0.15))
    assert right(x, labels).mean() > 0.6
    assert right(attack(model, x, labels, streams(8)), labels).mean() < 0.3


def test_an_image_that_is_misclassified_already_comes_back_as_it_was(
    linear, counting, images, streams
):
    model, x = linear(), images()
    y = (model(x).argmax(1) + 1) % 3
    counted = still(model, counting)
    assert torch.equal(SHORT(counted, x, y, streams()), x)
    assert counted.queries == 4


def test_an_image_that_does_not_fall_comes_back_as_near_as_it_came(linear, images, streams):
    model, x = linear(), images()
    logits = model(x)
    y = logits.argmax(1)
    found = replace(SHORT, threat=Linf(0.001))(model, x, y, streams())
    assert torch.equal(model(found).argmax(1), y)
    assert ((found - x).flatten(1).norm(dim=1) > 0).all()
    margins = [z.topk(2).values[:, 0] - z.topk(2).values[:, 1] for z in (logits, model(found))]
    assert (margins[1] < margins[0]).all()


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_logits_that_are_not_finite_neither_crash_nor_leak(value, images, streams):
    class Broken(nn.Module):
        def forward(self, images):
            return torch.full((len(images), 3), value)

    found = SHORT(Broken(), images(), torch.zeros(4, dtype=torch.int64), streams())
    assert found.isfinite().all()


def test_epsilon_zero_and_no_images(curved, images, streams):
    y = curved()(images()).argmax(1)
    assert torch.equal(replace(SHORT, threat=Linf(0))(curved(), images(), y, streams()), images())
    assert SHORT(curved(), images()[:0], y[:0], streams()[:0]).shape == (0, 3, 8, 8)


def test_the_engine_tells_whether_the_target_draws(linear, images):
    """Else nothing would leave: the engine's counter takes streams, whatever it counts."""
    y = linear()(images()).argmax(1)
    scenarios = {
        "genattack": Scenario(SHORT, Target()),
        "hopskipjump": Scenario(HopSkipJump(2, threat=Linf(0.1)), Target()),
    }
    for defense, random in ((None, False), (AdversarialTransform(linear(), steps=1), True)):
        engine = Engine(DefendedClassifier(defense, linear()), scenarios, draws=2)
        records, _ = engine.run(images(), y, torch.arange(4))
        assert [source.random for source in engine.sources.values()] == [random] * 2
        for name, scenario in scenarios.items():
            assert (records.of(name).queries <= scenario.attack.cost().queries).all()
            assert (records.of(name).gradients == 0).all()


@pytest.mark.parametrize(
    "change",
    [
        {"steps": 5},
        {"population": 6},
        {"temperature": 30.0},
        {"adaptive": False},
        {"adaptive": False, "mutation_probability": 0.2},
        {"adaptive": False, "mutation_range": 1.0},
        {"target": "least_likely"},
        {"threat": Linf(0.002)},
    ],
    ids=str,
)
def test_every_other_field_changes_the_outcome(change, curved, images, streams):
    base = replace(
        SHORT, threat=Linf(0.001), adaptive=change.get("adaptive", True) or len(change) == 1
    )
    y = curved()(images()).argmax(1)
    plain = base(curved(), images(), y, streams())
    assert (replace(base, **change)(curved(), images(), y, streams()) - plain).abs().max() > 1e-4


def test_votes_change_the_outcome_on_random_models(random_linear, images, streams):
    model, y = random_linear(), torch.arange(4) % 3
    results = [replace(SHORT, votes=votes)(model, images(), y, streams()) for votes in (1, 5)]
    assert (results[0] - results[1]).abs().max() > 1e-4


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("steps", 0),
        ("population", 1),
        ("mutation_probability", 1.5),
        ("mutation_range", 0.0),
        ("temperature", 0.0),
        ("target", "first"),
        ("classes", 0),
        ("votes", 0),
        ("threat", L2()),
    ],
)
def test_impossible_options_are_named(option, value):
    with pytest.raises(OptionError, match=rf"^{option} = "):
        GenAttack(**{option: value})


@pytest.mark.parametrize("epsilon", [0.04, 0.08])
def test_as_successful_as_foolbox_at_equal_budgets(epsilon, patterns, counting, streams):
    """Success of reaching the second class over 40 images within 5 points of Foolbox's, with no
    more queries.
    """
    foolbox = pytest.importorskip("foolbox")
    model, x, y = patterns
    x, y = x[:40], y[:40]
    goal = model(x).scatter(1, y[:, None], -torch.inf).argmax(1)
    recipe = {"steps": 100, "population": 4, "mutation_probability": 0.05, "mutation_range": 0.25}
    counted = counting(model)
    torch.manual_seed(0)
    np.random.seed(0)  # noqa: NPY002 - Foolbox draws from it
    bounded = foolbox.PyTorchModel(counted.eval(), bounds=(0, 1), device="cpu")
    criterion = foolbox.criteria.TargetedMisclassification(goal)
    theirs = foolbox.attacks.GenAttack(**recipe)(bounded, x, criterion, epsilons=epsilon)[1]
    budget, counted = counted.queries, still(model, counting)
    # Elites are not asked twice, which leaves queries for a third more generations.
    attack = GenAttack(**recipe | {"steps": 132}, target="second", threat=Linf(epsilon))
    ours = attack(counted, x, y, streams(40))
    assert counted.queries <= budget
    success = [(model(found).argmax(1) == goal).double().mean() for found in (ours, theirs)]
    assert success[1] > 0.1
    assert success[0] >= success[1] - 0.05


def test_its_goals_are_those_it_breeds_towards(linear, images, streams):
    model, x = linear(4), images()
    y = model(x).argmax(1)
    assert SHORT.goals(model, x, y, streams()) is None
    far = replace(SHORT, target="least_likely", steps=200, threat=Linf(1.0))
    goals = far.goals(model, x, y, streams())
    assert torch.equal(goals, model(x).argmin(1))
    assert torch.equal(model(far(model, x, y, streams())).argmax(1), goals)
