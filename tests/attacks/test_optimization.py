"""Liu et al.'s optimisation: what it is made of, its distance term, and one Adam for each model."""

import math

import pytest
import torch
from torch import Tensor, nn

from robusttrain.attacks import (
    Adam,
    Average,
    Backprop,
    CrossEntropy,
    Ensemble,
    Linf,
    Loss,
    Optimization,
    ProjectedGradient,
    Source,
    TargetedCrossEntropy,
    WrongProbability,
)
from robusttrain.attacks.algorithms.optimization import away
from robusttrain.attacks.asking import members_of
from robusttrain.core.errors import OptionError
from robusttrain.evaluation import Engine, Scenario
from robusttrain.models.defended import DefendedClassifier

FREE = Linf(1.0)


class Given(Source):
    """A source that is this model."""

    def __init__(self, model):
        self.model = model

    def __call__(self, target):
        return self.model


def ensemble(*models: nn.Module, weights: list[float] | None = None) -> nn.Module:
    return Ensemble([Given(model) for model in models], weights)(None)


def labels(model, images: Tensor) -> Tensor:
    return model(images).argmax(1)


def test_one_model_without_a_distance_term_is_projected_gradient_with_adam(curved, images, streams):
    model, x = curved(), images()
    y = labels(model, x)
    options = {"threat": Linf(0.2), "objective": CrossEntropy()}
    composed = ProjectedGradient(15, step_size=0.02, random_start=False, rule=Adam(), **options)
    found = Optimization(15, 0.02, **options)(model, x, y, streams())
    torch.testing.assert_close(found, composed(model, x, y, streams()), rtol=0, atol=1e-6)


def test_the_loop_is_that_of_torchs_adam(curved, images, streams):
    """-log(1 - p_y) from probabilities, minimised with torch.optim.Adam."""
    model, x = curved(), images()
    y = labels(model, x)
    point = x.clone().requires_grad_()
    adam = torch.optim.Adam([point], lr=0.003)
    for _ in range(20):
        adam.zero_grad()
        p = model(point).softmax(1).gather(1, y[:, None])
        (-(1 - p).log()).sum().backward()
        adam.step()
    found = Optimization(20, 0.003, threat=FREE)(model, x, y, streams())
    torch.testing.assert_close(found, point.detach().clamp(0, 1), rtol=0, atol=1e-4)
    assert (labels(model, found) != y).any()


def test_the_first_update_is_the_learning_rate_for_each_model(curved, linear, images, streams):
    """Adam's first step is 1 for every pixel: two models that agree move it by 2 eta, two that
    disagree not at all.
    """
    one, two, x = curved(classes=3), linear(), images()
    y = torch.tensor([0, 1, 2, 0])
    found = Optimization(1, 0.01, threat=FREE)(ensemble(one, two), x, y, streams())
    first, second = (
        Backprop()(Loss(model, WrongProbability(), y), x, streams())[1] for model in (one, two)
    )
    torch.testing.assert_close(found - x, 0.01 * (first.sign() + second.sign()), rtol=0, atol=1e-4)
    assert (first.sign() == -second.sign()).any()


def test_each_model_has_an_adam_of_its_own(curved, images, streams):
    """Written out for two models; one Adam on the fused source goes elsewhere."""
    models, x = [curved(seed=1), curved(seed=2)], images()
    y = torch.tensor([0, 1, 2, 3])
    point, memories = x, [Adam().init(x), Adam().init(x)]
    for _ in range(8):
        steps = []
        for i, model in enumerate(models):
            gradient = Backprop()(Loss(model, WrongProbability(), y), point, streams())[1]
            step, memories[i] = Adam().step(gradient, memories[i])
            steps.append(step)
        point = (point + 0.01 * (steps[0] + steps[1])).clamp(0, 1)
    both = ensemble(*models)
    found = Optimization(8, 0.01, threat=FREE)(both, x, y, streams())
    torch.testing.assert_close(found, point, rtol=0, atol=1e-5)
    fused = Optimization(8, 0.01, apart=False, threat=FREE)(both, x, y, streams())
    assert (fused - found).abs().max() > 0.01
    composed = ProjectedGradient(
        8, 0.01, random_start=False, threat=FREE, objective=WrongProbability(), rule=Adam()
    )
    torch.testing.assert_close(fused, composed(both, x, y, streams()), rtol=0, atol=1e-5)


def test_an_ensemble_of_the_same_model_moves_as_many_times_as_far(curved, images, streams):
    model, x = curved(), images()
    y = labels(model, x)
    one = Optimization(6, 0.02, threat=FREE)(model, x, y, streams())
    two = Optimization(6, 0.01, threat=FREE)(ensemble(model, model), x, y, streams())
    torch.testing.assert_close(one, two, rtol=0, atol=1e-5)


def test_weights_weigh_the_updates(curved, images, streams):
    one, two, x = curved(seed=1), curved(seed=2), images()
    y = torch.tensor([0, 1, 2, 3])
    only = Optimization(5, 0.02, threat=FREE)(one, x, y, streams())
    weighed = Optimization(5, 0.01, threat=FREE)(
        ensemble(one, two, weights=[1.0, 0.0]), x, y, streams()
    )
    torch.testing.assert_close(weighed, only, rtol=0, atol=1e-5)


def test_what_is_no_ensemble_is_its_own_only_member(curved):
    model, other = curved(), curved(seed=1)
    assert members_of(model) == [(model, 1.0)]
    model.members, model.weights = [other], [1.0]  # a stranger's attributes mean nothing
    assert members_of(model) == [(model, 1.0)]
    assert members_of(ensemble(model, other, weights=[0.25, 0.75])) == [
        (model, 0.25),
        (other, 0.75),
    ]


def test_the_distance_term_is_the_gradient_of_the_rmsd(images):
    x = images().double()
    point = (
        x + 0.1 * torch.randn(x.shape, generator=torch.Generator().manual_seed(0))
    ).requires_grad_()
    rmsd = (point - x).square().mean(dim=(1, 2, 3)).sqrt()
    (expected,) = torch.autograd.grad(rmsd.sum(), point)
    torch.testing.assert_close(away(point.detach(), x), expected)
    assert not away(x, x).any()


def test_the_distance_term_holds_images_back(curved, images, streams):
    model, x = curved(), images()
    y = labels(model, x)
    rmsd = []
    for weight in (0.0, 5.0, 500.0):
        found = Optimization(30, 0.01, weight, threat=FREE)(model, x, y, streams())
        rmsd.append((found - x).square().mean().sqrt().item())
    assert rmsd[0] > 1.05 * rmsd[1] > 2 * rmsd[2]


def test_targets_are_reached(curved, images, streams):
    model, x = curved(), images()
    attack = Optimization(60, 0.01, threat=FREE, objective=TargetedCrossEntropy("least_likely"))
    found = attack(model, x, labels(model, x), streams())
    assert labels(model, found).equal(model(x).argmin(1))


@pytest.mark.parametrize(
    "changed",
    [
        {"steps": 7},
        {"learning_rate": 0.02},
        {"distance_weight": 3.0},
        {"threat": Linf(0.01)},
        {"objective": TargetedCrossEntropy("least_likely")},
        {"gradient": Average(2)},
    ],
    ids=str,
)
def test_each_option_changes_the_outcome(changed, random_linear, images, streams):
    model, x, y = random_linear(4), images(), torch.tensor([0, 1, 2, 3])
    options = {"steps": 10, "learning_rate": 0.01, "threat": FREE}
    plain = Optimization(**options)(model, x, y, streams())
    assert (Optimization(**options | changed)(model, x, y, streams()) - plain).abs().max() > 1e-3


def test_members_draw_streams_of_their_own(random_linear, counting, images, streams):
    members = [counting(random_linear(4)) for _ in range(2)]
    Optimization(5, 0.01)(ensemble(*members), images(), torch.tensor([0, 1, 2, 3]), streams())
    keys = members[0].keys + members[1].keys
    assert len(keys) == len(set(keys)) == 2 * 5 * 4


def test_the_engine_counts_members_together_as_one(curved, images):
    """Each member sees every step; all together that is one gradient evaluation a step, as the
    attack's cost says.
    """
    source = Ensemble([Given(curved(seed=seed)) for seed in (1, 2, 3)])
    attack = Optimization(5, 0.01, threat=FREE, objective=TargetedCrossEntropy())
    x = images()
    advanced = []
    engine = Engine(
        DefendedClassifier(None, curved()),
        {"liu": Scenario(attack, source)},
        survivors=False,
        advance=lambda count, spent=True: advanced.append((count, spent)),
    )
    records, _ = engine.run(x, labels(curved(), x), torch.arange(4))
    torch.testing.assert_close(records.of("liu").gradients, torch.full((4,), 5.0))
    torch.testing.assert_close(records.of("liu").queries, torch.full((4,), 1.0))
    assert sum(count for count, _ in advanced) == pytest.approx(4 * (5 + 1 + 2))
    assert all(spent for count, spent in advanced if count)
    bare = attack(source(None), x, labels(curved(), x))
    assert (records.of("liu").distance.float() - FREE.distance(bare, x)).abs().max() < 1e-4


@pytest.mark.parametrize(
    ("option", "value"),
    [("steps", -1), ("learning_rate", 0.0), ("distance_weight", -1.0), ("learning_rate", math.inf)],
)
def test_impossible_options_are_named(option, value):
    with pytest.raises(OptionError, match=rf"^{option} = "):
        Optimization(**{option: value})
