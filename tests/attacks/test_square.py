"""Square: the schedule, both kinds of steps, what leaves the batch when, and what a random model
costs.
"""

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from robusttrain.attacks import (
    L2,
    CrossEntropy,
    Linf,
    Margin,
    Queried,
    Square,
    TargetedMargin,
)
from robusttrain.attacks.algorithms.square import eta
from robusttrain.core.errors import OptionError
from robusttrain.core.rng import Rng
from robusttrain.models import fast_copy, nearby, reach

LABELS = torch.tensor([0, 1, 0, 1])
CPU = torch.device("cpu")
THREATS = [Linf(0.05), L2(0.5)]


def margins(model: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
    return Margin()(model(images), labels).detach()


class Notes(list):
    """A list that stays after an attack, which puts attributes back."""


class Recorded(nn.Module):
    """Keeps every image that is asked."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        self.asked: list[Tensor] = Notes()

    def forward(self, images):
        self.asked.append(images.clone())
        return self.model(images)


def strong(linear):
    """A linear model of two classes whose margin at the images is far beyond reach."""
    model = linear(2)
    with torch.no_grad():
        model.bias.copy_(torch.tensor([1000.0, -1000.0]))
    return model


def test_linf_reaches_the_best_corner_of_a_linear_model(linear, images, streams):
    """Single pixels are tried in the end: each channel of each pixel finds the sign of its
    weight.
    """
    model, x, labels = strong(linear), images(4, 3, 4), torch.zeros(4, dtype=torch.int64)
    model.weight.data = model.weight.data[:, :48]
    model.double()
    found = Square(2500, threat=Linf(0.05))(model, x.double(), labels, streams())
    w = (model.weight[1] - model.weight[0]).detach()
    gained = margins(model, found, labels) - margins(model, x.double(), labels)
    torch.testing.assert_close(gained, (0.05 * w.abs().sum()).expand(4), rtol=1e-5, atol=0)
    torch.testing.assert_close(found, x + 0.05 * w.sign().view(1, 3, 4, 4), rtol=0, atol=1e-6)


def test_l2_gains_most_of_the_best_margin_of_a_linear_model(linear, images, streams):
    """A smooth direction, because bumps cannot follow noise. A random one of 192 dimensions would
    gain 7 % of it.
    """
    model, x, labels = strong(linear), images(), torch.zeros(4, dtype=torch.int64)
    smooth = torch.linspace(-1, 1, 8).view(1, 8, 1).expand(3, 8, 8).reshape(1, -1)
    model.weight.data = torch.cat([-smooth, smooth])
    model.double()
    found = Square(1500, threat=L2(0.5))(model, x.double(), labels, streams())
    best = 0.5 * 2 * smooth.norm().double()
    gained = margins(model, found, labels) - margins(model, x.double(), labels)
    assert (gained <= best + 1e-9).all()
    assert (gained > 0.6 * best).all()


@pytest.mark.parametrize("threat", THREATS, ids=str)
def test_the_loss_of_the_best_never_falls_and_it_is_returned(threat, linear, images, streams):
    model, labels = Recorded(strong(linear).double()), torch.zeros(4, dtype=torch.int64)
    found = Square(200, threat=threat)(model, images().double(), labels, streams())
    assert len(model.asked) == 200
    asked = torch.stack([margins(model.model, points, labels) for points in model.asked[2:]])
    torch.testing.assert_close(
        margins(model.model, found, labels), asked.amax(dim=0), rtol=0, atol=1e-9
    )
    best = asked.cummax(dim=0).values
    assert ((best[-1] - best[0]) > 0.1).all()


@pytest.mark.parametrize("threat", THREATS, ids=str)
def test_every_point_asked_lies_in_the_ball_and_in_the_box(threat, linear, streams):
    x = (2 * torch.rand(4, 3, 8, 8, generator=torch.Generator().manual_seed(3)) - 0.5).clamp(0, 1)
    model = Recorded(strong(linear))
    Square(100, threat=threat)(model, x, torch.zeros(4, dtype=torch.int64), streams())
    for points in model.asked:
        assert points.min() >= 0
        assert points.max() <= 1
        assert threat.distance(points, x).max() <= threat.epsilon + 1e-6


def test_linf_steps_are_squares_in_the_corners(linear, images, streams):
    """Stripes first; then one square of one colour, wherever it is not clipped, another place for
    each image.
    """
    model, x = Recorded(strong(linear)), images(16)
    Square(60, threat=Linf(0.05))(model, x, torch.zeros(16, dtype=torch.int64), streams(16))
    changes = [(points - x).sign() for points in model.asked]
    assert not changes[0].any()
    assert not changes[1].any()
    assert torch.equal(changes[2], changes[2][:, :, :1].expand_as(x))
    assert changes[2].abs().all()
    best, f = (
        model.asked[2],
        margins(model.model, model.asked[2], torch.zeros(16, dtype=torch.int64)),
    )
    for i, points in enumerate(model.asked[3:]):
        torch.testing.assert_close((points - x).abs(), torch.full_like(x, 0.05), rtol=0, atol=1e-6)
        moved = ((points - best).abs() > 1e-6).any(dim=1)
        side = Square().side(i, 5000, x)
        for rows in (moved.any(dim=1), moved.any(dim=2)):
            numbers = torch.arange(8).expand(16, 8)
            span = numbers.where(rows, -1).amax(1) - numbers.where(rows, 9).amin(1) + 1
            assert span.max() <= side
        now = margins(model.model, points, torch.zeros(16, dtype=torch.int64))
        best = torch.where((now > f).view(-1, 1, 1, 1), points, best)
        f = torch.maximum(f, now)
    corners = torch.stack(
        [(points[:, 0] - model.asked[2][:, 0]).flatten(1) for points in model.asked[3:]]
    )
    assert len(corners[20].sign().unique(dim=0)) > 4


def test_l2_steps_spend_the_whole_budget(linear, images, streams):
    model, x = Recorded(strong(linear).double()), images().double()
    Square(60, threat=L2(0.3))(model, x, torch.zeros(4, dtype=torch.int64), streams())
    for points in model.asked[2:]:
        torch.testing.assert_close(
            (points - x).flatten(1).norm(dim=1), torch.full((4,), 0.3).double()
        )


@pytest.mark.parametrize("side", [2, 3, 4, 8])
def test_l2_steps_spend_what_clipping_left_unused(side, images, streams):
    nu = 0.1 * torch.nn.functional.normalize(images().double().flatten(1)).view(4, 3, 8, 8)
    moved = Square(threat=L2(0.3))._move_budget(nu, side, streams())
    torch.testing.assert_close(moved.flatten(1).norm(dim=1), torch.full((4,), 0.3).double())
    assert ((moved != nu).any(dim=1).flatten(1).sum(dim=1) <= 2 * side**2).all()


def test_the_bump_by_hand():
    """Side 4: the upper half is eta^(2, 4), centre (1, 2), n = 2: sums of 1, 1/4 and 1/9 from the
    distance on.
    """
    tail = [1 + 1 / 4 + 1 / 9, 1 / 4 + 1 / 9, 1 / 9]
    half = torch.tensor(
        [[tail[2], tail[1], tail[1], tail[1]], [tail[2], tail[1], tail[0], tail[1]]]
    )
    both = torch.cat([half, -half])
    torch.testing.assert_close(eta(4, CPU), both / both.norm())
    for side in range(1, 12):
        assert eta(side, CPU).shape == (side, side)
        assert eta(side, CPU).norm().item() == pytest.approx(1)


def test_the_schedule_by_hand(images):
    """p = 0.8 halved after 10, 50, 200, ... iterations; h = round(sqrt(p) * 32)."""
    x = images(1, 3, 32)
    sides = {
        10: 0.8,
        11: 0.4,
        50: 0.4,
        51: 0.2,
        201: 0.1,
        501: 0.05,
        1001: 0.025,
        2001: 0.0125,
        4001: 0.00625,
    }
    for i, p in sides.items():
        assert Square().side(i, 5000, x) == round(math.sqrt(p) * 32), i
    rescaled = Square(rescale=True)
    assert [rescaled.side(i, 5000, x) for i in (5, 6, 25, 26)] == [
        round(math.sqrt(p) * 32) for p in (0.8, 0.4, 0.4, 0.2)
    ]
    assert Square(p=0.05).side(0, 5000, x) == round(math.sqrt(0.05) * 32)
    assert Square(threat=L2(0.5)).side(4999, 5000, x) == 3
    assert Square(threat=L2(0.5)).side(4999, 5000, images(1, 3, 2)) == 2


@pytest.mark.parametrize("shape", [(1, 1, 1), (3, 4, 4), (1, 28, 28), (3, 12, 7), (2, 3, 30)])
@pytest.mark.parametrize("threat", THREATS, ids=str)
def test_images_of_any_shape(threat, shape, streams):
    class Mean(nn.Module):
        def forward(self, images):
            a = images.flatten(1).mean(dim=1)
            return torch.stack([5 - a, a], dim=1)

    x = torch.full((3, *shape), 0.5)
    found = Square(40, threat=threat)(Mean(), x, torch.zeros(3, dtype=torch.int64), streams(3))
    assert found.shape == x.shape
    assert found.isfinite().all()
    assert threat.distance(found, x).max() <= threat.epsilon + 1e-6


@pytest.mark.parametrize("threat", [Linf(0), L2(0)], ids=str)
def test_epsilon_zero_returns_the_images(threat, curved, random_linear, images, streams):
    for model in (curved(), random_linear(4)):
        assert torch.equal(
            Square(30, votes=2, threat=threat)(model, images(), LABELS, streams()), images()
        )


@pytest.mark.parametrize("threat", THREATS, ids=str)
def test_broken_images_leave_and_disturb_nobody(threat, curved, counting, images, streams):
    model, x = counting(curved()), images(16)
    labels = model.model(x).argmax(1)
    attack = Square(60, threat=replace(threat, epsilon=0.4 * threat.epsilon))
    found = attack(model, x, labels, streams(16))
    wrong = model.model(found).argmax(1) != labels
    assert 0 < wrong.sum() < 16
    assert model.gradients == 0
    counts = []
    for i in range(16):
        alone = counting(curved())
        result = attack(alone, x[i : i + 1], labels[i : i + 1], streams(16)[torch.tensor([i])])
        torch.testing.assert_close(result[0], found[i], rtol=0, atol=1e-6)
        counts.append(alone.queries)
    assert sum(counts) == model.queries
    assert [count == 60 for count in counts] == (~wrong).tolist()
    assert all(count < 60 for count, broken in zip(counts, wrong.tolist(), strict=True) if broken)


@pytest.mark.parametrize("objective", [Margin(), TargetedMargin(), CrossEntropy()], ids=str)
@pytest.mark.parametrize("queries", [4, 5, 47])
def test_declared_cost_is_counted_cost_where_nobody_is_broken(
    queries, objective, curved, counting, images, streams
):
    model, x = counting(curved()), images()
    labels = model.model(x).argmax(1)
    attack = Square(queries, objective=objective, threat=Linf(1e-5))
    attack(model, x, labels, streams())
    assert (model.gradients, model.queries) == (0, 4 * queries) == (0, 4 * attack.cost().queries)


@pytest.mark.parametrize(("queries", "votes"), [(4, 1), (7, 2), (21, 9), (22, 10), (100, 10)])
def test_a_random_model_costs_two_times_the_votes_an_iteration(
    queries, votes, random_linear, counting, images, streams
):
    """Queries that do not do for one iteration of ten votes are spent on fewer votes."""
    model = counting(random_linear(4))
    Square(queries, votes=10)(model, images(), LABELS, streams())
    spent = 2 * votes * ((queries - 2) // (2 * votes))
    assert model.queries == 4 * (2 + spent) <= 4 * queries
    assert spent
    assert len(model.keys) == model.queries


@pytest.mark.parametrize("threat", THREATS, ids=str)
def test_a_random_model_loses_on_average_and_not_in_one_draw(
    threat, random_linear, images, streams
):
    model, x = random_linear(4, scale=0.05), images(8)
    labels = super(type(model), model).forward(x).argmax(1)
    attack = Square(600, votes=5, threat=threat)
    found = attack(model, x, labels, streams(8))
    assert torch.equal(attack(model, x, labels, streams(8)), found)

    def mean_margin(points):
        rng = Rng.for_images(9, torch.arange(8)).tile(50)
        return (
            Margin()(model(points.repeat(50, 1, 1, 1), rng), labels.repeat(50))
            .view(50, 8)
            .mean(dim=0)
        )

    assert (mean_margin(found) > mean_margin(x) + 0.02).all()
    for i in (0, 5):
        alone = attack(model, x[i : i + 1], labels[i : i + 1], streams(8)[torch.tensor([i])])
        assert ((alone[0] - found[i]).abs() < 1e-5).double().mean() > 0.99


class Flickering(nn.Module):
    """Answers are noise alone; for dark images they are always the same."""

    takes_rng = True

    def forward(self, images, rng):
        bright = images.mean(dim=(1, 2, 3)) > 0.5
        return torch.where(bright[:, None], rng.uniform((3,)), torch.tensor([1.0, 0.0, -1.0]))


def test_random_and_other_images_in_one_batch(counting, images, streams):
    """A verdict that flickers ends nothing, and images of both kinds end with what they have
    alone.
    """
    x = torch.cat([images(2) * 0.2, images(2) * 0.2 + 0.7])[torch.tensor([0, 2, 1, 3])]
    labels = torch.zeros(4, dtype=torch.int64)
    model = counting(Flickering())
    attack = Square(50, votes=4)
    found = attack(model, x, labels, streams())
    assert model.queries == 2 * 50 + 2 * 50
    for i in range(4):
        alone = attack(Flickering(), x[i : i + 1], labels[i : i + 1], streams()[torch.tensor([i])])
        assert torch.equal(alone[0], found[i])


def test_a_nan_answer_is_no_success(counting, images, streams):
    class Broken(nn.Module):
        def forward(self, images):
            return torch.full((len(images), 3), torch.nan)

    model = counting(Broken())
    found = Square(20)(model, images(), LABELS, streams())
    assert model.queries == 4 * 20
    assert found.isfinite().all()
    assert Linf(0.031).distance(found, images()).max() <= 0.031 + 1e-6


def test_no_images_give_no_images(curved, images, streams):
    assert Square(20)(curved(), images()[:0], LABELS[:0], streams()[:0]).shape == (0, 3, 8, 8)


@pytest.mark.parametrize("threat", THREATS, ids=str)
def test_it_needs_no_gradient_and_no_mode(threat, convnet, images, streams):
    model = convnet(4).train()
    labels = convnet(4)(images()).argmax(1)
    expected = Square(30, threat=threat)(convnet(4), images(), labels, streams())
    with torch.inference_mode():
        result = Square(30, threat=threat)(model, images(), labels, streams())
    assert torch.equal(result.clone(), expected)
    assert all(part.training for part in model.modules())


PLAIN = Square(60, threat=Linf(0.004))


@pytest.mark.parametrize(
    "change",
    [
        {"queries": 100},
        {"p": 0.1},
        {"rescale": True},
        {"threat": Linf(0.005)},
        {"threat": L2(0.004)},
        {"objective": TargetedMargin("random")},
    ],
    ids=str,
)
def test_every_field_changes_the_outcome(change, curved, images, streams):
    x = images()
    labels = curved()(x).argmax(1)
    plain = PLAIN(curved(), x, labels, streams())
    assert (margins(curved(), plain, labels) < 0).all()
    assert (replace(PLAIN, **change)(curved(), x, labels, streams()) - plain).abs().max() > 1e-4


def test_votes_change_the_outcome_of_a_random_model(random_linear, images, streams):
    results = [
        Square(60, votes=votes)(random_linear(4), images(), LABELS, streams()) for votes in (2, 5)
    ]
    assert not torch.equal(*results)


@pytest.mark.parametrize(
    ("option", "value"),
    [("queries", 3), ("p", 1.5), ("p", -0.1), ("p", float("nan")), ("votes", 0)],
)
def test_impossible_options_are_named(option, value):
    with pytest.raises(OptionError, match=rf"^{option} = "):
        Square(**{option: value})


def test_another_norm_is_refused():
    class L1(Linf):
        norm = "l1"

    with pytest.raises(OptionError, match="^threat = .*linf, l2"):
        Square(threat=L1())


def test_a_shorter_one_has_an_iteration_for_its_votes():
    assert Square(threat=Linf(0.1), votes=40).scaled(0).queries == 83


def test_it_finds_the_same_where_a_network_remembers(monkeypatch, streams):
    """Fast copies compute what a square changed; who asks the network itself finds no other
    points.
    """
    for name in ("STEP", "WORTH"):
        monkeypatch.setattr(reach, name, 0)
    torch.manual_seed(0)
    network = nn.Sequential(
        *(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Conv2d(8, 8, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(512, 5)),
    ).eval()
    images = torch.rand(12, 3, 16, 16, generator=torch.Generator().manual_seed(1))
    labels = network(images).argmax(dim=1)
    in_part = []
    passing = nearby._Pass.run
    monkeypatch.setattr(
        nearby._Pass, "run", lambda self, x: in_part.append(self.plan.spans) or passing(self, x)
    )

    def found(remembers: bool) -> tuple[Tensor, float]:
        monkeypatch.setattr(nearby, "MEMORY", 2**29 if remembers else 0)
        source = Queried(fast_copy(network))
        points = Square(300, threat=Linf(0.06))(source, images, labels, streams(12))
        return points, float(source.queries)

    (points, queries), (plain, plainly) = found(True), found(False)
    assert sum(map(bool, in_part)) > 150
    wrong = network(plain).argmax(dim=1) != labels
    assert 2 <= int(wrong.sum()) <= 10  # some leave the batch on the way
    assert queries == plainly
    torch.testing.assert_close(points, plain, rtol=0, atol=1e-6)
