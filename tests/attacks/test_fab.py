"""FAB: projections onto planes in a box, closed forms on linear models, and torchattacks' FAB-T
beside it.
"""

from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from robusttrain.attacks import (
    FAB,
    L2,
    RMSD,
    Average,
    FiniteDifference,
    IdentityBackward,
    Linf,
    Margin,
    Smooth,
)
from robusttrain.attacks.algorithms.fab import to_hyperplane
from robusttrain.attacks.asking import Queried
from robusttrain.core.errors import OptionError
from robusttrain.core.rng import Rng
from robusttrain.defenses import Defense
from robusttrain.models.defended import DefendedClassifier

NORMS = {"linf": Linf, "l2": L2}


def shortest(x: Tensor, f: float, w: Tensor, norm: str) -> Tensor:
    """The shortest step to the plane within the box, by bisection over its length, in double
    precision.
    """
    x, w = x.double(), w.double()
    towards = -torch.sign(torch.tensor(f)) * w.sign()
    room, v = torch.where(towards > 0, 1 - x, x), torch.ones_like(w) if norm == "linf" else w.abs()
    low, high = 0.0, 1e9
    for _ in range(200):
        middle = (low + high) / 2
        gain = (w.abs() * torch.minimum(middle * v, room)).sum()
        low, high = (middle, high) if gain < abs(f) else (low, middle)
    return torch.where(w != 0, towards * torch.minimum(high * v, room), 0)


@pytest.mark.parametrize("norm", NORMS)
def test_the_step_to_a_plane_is_the_shortest_within_the_box(norm):
    rng = torch.Generator().manual_seed(0)
    x = torch.rand(40, 2, 3, 3, generator=rng)
    x[::3, 0] = x[::3, 0].round()  # many pixels on the rim of the box
    w = torch.randn(40, 2, 3, 3, generator=rng)
    w[::4, :, 1] = 0  # and many that say nothing
    f = torch.linspace(-4, 4, 40)
    steps = to_hyperplane(x, f, w, norm)
    assert (x + steps).min() >= 0
    assert (x + steps).max() <= 1
    reached = (f + (w * steps).flatten(1).sum(dim=1)).abs() < 1e-5
    assert 10 < reached.sum() < 40  # some planes lie outside the box
    for i in range(40):
        expected = shortest(x[i], f[i].item(), w[i], norm)
        torch.testing.assert_close(steps[i].double(), expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("norm", NORMS)
def test_a_plane_through_the_point_and_a_gradient_of_zero_move_nothing(norm):
    x = torch.full((2, 1, 2, 2), 0.5)
    w = torch.stack([torch.ones(1, 2, 2), torch.zeros(1, 2, 2)])
    assert torch.equal(to_hyperplane(x, torch.tensor([0.0, 1.0]), w, norm), torch.zeros_like(x))


def nearest(model: nn.Module, images: Tensor, labels: Tensor, norm: str) -> Tensor:
    """(B,): the closed-form distance of a linear model's boundary: min over t of (z_y - z_t) / |w_y
    - w_t|_dual.
    """
    z, w = model(images), model.weight
    rows = []
    for t in range(w.shape[0]):
        difference = w[labels] - w[t]
        dual = difference.abs().sum(dim=1) if norm == "linf" else difference.norm(dim=1)
        gap = z.gather(1, labels[:, None]).squeeze(1) - z[:, t]
        rows.append(torch.where(labels == t, torch.inf, gap / dual))
    return torch.stack(rows).amin(dim=0).detach()


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize(("eta", "tolerance"), [(1.05, 0.006), (1.0005, 0.0006)])
@pytest.mark.parametrize("classes", [2, 5])
def test_a_linear_models_nearest_image_is_found(
    classes, eta, tolerance, norm, linear, images, streams
):
    """With eta = 1.05 the second step ends 0.52 % beyond the boundary, by hand; no step ends before
    it.
    """
    model, x = linear(classes), images(16)
    labels = model(x).argmax(1)
    threat = NORMS[norm](100.0)
    found = FAB(20, eta=eta, nearest=True, threat=threat)(model, x, labels, streams(16))
    assert (model(found).argmax(1) != labels).all()
    closed_form = nearest(model, x, labels, norm)
    reached = threat.distance(found, x) / closed_form
    assert reached.min() >= 1 - 1e-4
    assert reached.max() <= 1 + tolerance


@pytest.mark.parametrize("norm", NORMS)
def test_what_lies_within_epsilon_is_found_and_what_does_not_comes_back_projected(
    norm, linear, images, streams
):
    model, x = linear(5), images(64)
    labels = model(x).argmax(1)
    closed_form = nearest(model, x, labels, norm)
    threat = NORMS[norm](closed_form.median().item())
    found = FAB(20, threat=threat)(model, x, labels, streams(64))
    broken = model(found).argmax(1) != labels
    assert threat.distance(found, x).max() <= threat.epsilon + 1e-6
    assert broken[closed_form < 0.99 * threat.epsilon].all()
    assert not broken[closed_form > 1.001 * threat.epsilon].any()
    assert (threat.distance(found, x)[~broken] > 0.99 * threat.epsilon).all()


def test_the_box_is_never_left(convnet, streams):
    x = torch.rand(32, 3, 8, 8, generator=torch.Generator().manual_seed(1)).round()
    labels = convnet(4)(x).argmax(1)
    for threat in (Linf(0.3), L2(4)):
        found = FAB(10, threat=threat, restarts=2)(convnet(4), x, labels, streams(32))
        assert found.min() >= 0
        assert found.max() <= 1
        assert threat.distance(found, x).max() <= threat.epsilon + 1e-6


@pytest.mark.parametrize(
    ("name", "threat"), [("Linf", Linf(0.03)), ("L2", L2(0.3))], ids=["linf", "l2"]
)
def test_fab_t_of_torchattacks(name, threat, patterns, streams):
    """The same images are broken, but for at most one in a hundred; where all is spent, the
    distances agree too.
    """
    torchattacks = pytest.importorskip("torchattacks")
    model, x, labels = patterns
    options = {"norm": name, "steps": 20, "multi_targeted": True, "n_classes": 4}
    theirs = torchattacks.FAB(model, eps=threat.epsilon, **options)(x, labels)
    found = FAB(20, targets=3, threat=threat)(model, x, labels, streams(len(x)))
    wrong, wrong_theirs = (model(points).argmax(1) != labels for points in (found, theirs))
    assert 0.1 < wrong.float().mean() < 0.9
    assert (wrong != wrong_theirs).float().mean() <= 0.01

    wide = torchattacks.FAB(model, eps=10.0, **{**options, "multi_targeted": False})(x, labels)
    mine = FAB(20, targets=3, nearest=True, threat=type(threat)(10.0))(
        model, x, labels, streams(len(x))
    )
    distance, distance_theirs = threat.distance(mine, x), threat.distance(wide, x)
    assert distance.median() <= 1.01 * distance_theirs.median()
    assert (model(mine).argmax(1) != labels).all()


def test_it_finds_about_what_apgd_t_finds(patterns, streams):
    from robusttrain.attacks import APGD, TargetedDLR

    model, x, labels = patterns
    shares = []
    for attack in (
        APGD(30, targets=3, objective=TargetedDLR(), threat=Linf(0.03)),
        FAB(30, threat=Linf(0.03)),
    ):
        found = attack(model, x, labels, streams(len(x)))
        shares.append((model(found).argmax(1) != labels).float().mean())
    assert abs(shares[0] - shares[1]) <= 0.02


class Rounded(Defense):
    """Rounds pixels to 32 values: nothing to differentiate; with noise, random."""

    differentiable = False

    def __init__(self, noise: float = 0.0) -> None:
        super().__init__()
        self.noise, self.random = noise, noise > 0

    def transform(self, images, rng):
        return ((images + self.noise * rng.normal(images.shape[1:])) * 31).round() / 31


@pytest.mark.parametrize(("noise", "gradient"), [(0.0, Smooth(3, 0.01)), (0.02, Average(10))])
def test_it_goes_around_a_defense(noise, gradient, patterns, streams):
    """Identity backward, and EOT where it is random: fresh draws tell what the found images do."""
    model, x, labels = patterns
    target = DefendedClassifier(Rounded(noise), model)
    attack = FAB(10, targets=2, threat=Linf(0.06), gradient=gradient)
    found = attack(IdentityBackward()(target), x[:48], labels[:48], streams(48))

    def accuracy(points: Tensor) -> float:
        right = [
            target(points, streams(48, seed=seed)).argmax(1) == labels[:48]
            for seed in range(100, 110)
        ]
        return torch.stack(right).float().mean().item()

    assert accuracy(found) < 0.5 * accuracy(x[:48])
    assert attack.threat.distance(found, x[:48]).max() <= 0.06 + 1e-6


@pytest.mark.parametrize(
    ("gradient", "draws"),
    [
        (FiniteDifference(4), 1),
        (Average(5, FiniteDifference(4)), 5),
        (Smooth(2, inner=Average(5, FiniteDifference(4))), 5),
        (Average(5), 5),
        (Smooth(7), 7),
    ],
    ids=str,
)
def test_as_many_draws_judge_as_are_averaged_over(gradient, draws, random_linear, images, streams):
    """A mean of differences takes no gradient, and one draw judged its points: luck."""
    attack = FAB(2, targets=1, gradient=gradient)
    assert attack.judging == draws
    model = Queried(random_linear())
    attack(model, images(), model(images(), streams()).argmax(1), streams())
    model.reset()
    share = attack.wrong(
        *(model, images(), torch.zeros(4, dtype=torch.int64), torch.ones(4).bool()),
        *(streams(), None),
    )
    assert model.queries == 4 * draws
    assert torch.equal((share * draws).round(), share * draws)


@pytest.mark.parametrize("random_model", [False, True])
@pytest.mark.parametrize(
    "attack",
    [
        FAB(3, targets=2),
        FAB(2, restarts=2, gradient=Average(3)),
        FAB(2, targets=2, gradient=Average(3, FiniteDifference(2))),
    ],
    ids=str,
)
def test_declared_cost_bounds_what_the_model_sees(
    attack, random_model, curved, random_linear, counting, images, streams
):
    model = counting(random_linear(10) if random_model else curved(10))
    model.random = random_model
    if random_model:  # then the draws only scale the logits, and no image is misclassified
        model.model.bias.data.zero_()
    x = images()
    labels = model.model(x).argmax(1)
    attack = replace(attack, threat=Linf(1e-5))
    attack(model, x, labels, streams())
    cost = attack.cost()
    assert model.gradients == 4 * cost.gradients
    runs = attack.restarts * attack.targets
    if random_model:
        assert model.queries == 4 * cost.queries
    else:
        each = attack.gradient.queries + 1
        assert model.queries == 4 * (2 + 1 + runs * (attack.steps * each + 1))


def test_broken_images_leave_unless_the_nearest_is_wanted(patterns, counting, streams):
    model, x, labels = patterns
    counted = counting(model)
    counted.random = False
    attack = FAB(10, targets=3, threat=Linf(0.06))
    found = attack(counted, x, labels, streams(len(x)))
    spent = counted.gradients
    assert spent < 0.7 * len(x) * attack.cost().gradients
    near = replace(attack, nearest=True)(counted, x, labels, streams(len(x)))
    assert counted.gradients - spent == len(x) * attack.cost().gradients
    broken = (model(near).argmax(1) != labels) & (model(found).argmax(1) != labels)
    shorter, longer = (attack.threat.distance(points, x)[broken] for points in (near, found))
    assert (shorter <= longer + 1e-6).all()
    assert shorter.mean() < 0.98 * longer.mean()


@pytest.mark.parametrize(
    "attack",
    [FAB(4, targets=2, restarts=2), FAB(3, threat=L2(0.2)), FAB(3, gradient=Average(2))],
    ids=str,
)
def test_seeds_batches_and_order(attack, curved, random_linear, images, streams):
    for model in (curved(), random_linear(4)):
        labels = torch.arange(8) % 3
        whole = attack(model, images(8), labels, streams(8))
        assert torch.equal(attack(model, images(8), labels, streams(8)), whole)
        order = torch.tensor([6, 0, 3])
        part = attack(model, images(8)[order], labels[order], streams(8)[order])
        assert ((part - whole[order]).abs() < 1e-5).double().mean() > 0.99


def test_images_that_are_wrong_already_come_back_as_they_were(curved, images, streams):
    model, x = curved(), images(8)
    labels = (model(x).argmax(1) + torch.arange(8) % 2) % 4
    found = FAB(5, threat=Linf(0.05))(model, x, labels, streams(8))
    assert torch.equal(found[1::2], x[1::2])
    assert (found[::2] != x[::2]).flatten(1).any(dim=1).all()


def test_an_image_with_a_nan_gradient_stays_an_image(curved, images, streams):
    class Poisoned(nn.Module):
        def forward(self, images):
            marked = (images[:, 0, 0, 0] == 0).view(-1, 1, 1, 1)
            return curved()(images * torch.where(marked, float("nan"), 1.0))

    x = images(8)
    x[2, :, 0, 0] = 0
    found = FAB(4)(
        Poisoned(), x, torch.zeros(8, dtype=torch.int64), Rng.for_images(0, torch.arange(8))
    )
    assert found.isfinite().all()


PLAIN = FAB(4, targets=1, beta=0.5, threat=Linf(0.06), nearest=True)


@pytest.mark.parametrize(
    "change",
    [
        {"steps": 1},
        {"targets": 3},
        {"alpha_max": 0.5},
        {"eta": 1.2},
        {"beta": 0.9},
        {"nearest": False},
        {"threat": L2(2)},
        {"threat": Linf(0.002)},
        {"gradient": Smooth(3)},
    ],
    ids=str,
)
def test_every_field_changes_the_outcome(change, patterns, streams):
    model, x, labels = (each[:48] if isinstance(each, Tensor) else each for each in patterns)
    plain = PLAIN(model, x, labels, streams(48))
    assert (Margin()(model(plain), labels) > 0).any()
    assert (replace(PLAIN, **change)(model, x, labels, streams(48)) - plain).abs().max() > 1e-5


class Kink(nn.Module):
    """Class 1 wins 0.04 away from grey on average; at grey itself there is no gradient."""

    def forward(self, images):
        away = (images - 0.5).abs().mean(dim=(1, 2, 3))
        return torch.stack([torch.zeros_like(away), away - 0.04], dim=1)


def test_restarts_begin_elsewhere(streams):
    x, labels = torch.full((8, 3, 8, 8), 0.5), torch.zeros(8, dtype=torch.int64)
    attack = FAB(5, threat=Linf(0.05))
    assert torch.equal(attack(Kink(), x, labels, streams(8)), x)
    found = replace(attack, restarts=2)(Kink(), x, labels, streams(8))
    assert (Kink()(found).argmax(1) == 1).all()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"steps": 0}, "steps = 0: must be at least 1"),
        ({"targets": 0}, "targets = 0"),
        ({"restarts": 0}, "restarts = 0"),
        ({"eta": 0.9}, "eta = 0.9: must be at least 1"),
        ({"beta": 2}, "beta = 2: must lie between 0 and 1"),
        ({"alpha_max": -1}, "alpha_max = -1"),
        ({"threat": RMSD()}, "must be of a norm that FAB knows: linf, l2"),
    ],
)
def test_bad_options_are_one_line(options, words):
    with pytest.raises(OptionError, match=words):
        FAB(**options)
