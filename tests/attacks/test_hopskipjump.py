"""HopSkipJump: closed-form distances on linear models, decisions that flicker, and Foolbox's at
equal budgets.
"""

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from robusttrain.attacks import L2, HopSkipJump, Linf
from robusttrain.attacks.algorithms.hopskipjump import BACK, WAYS
from robusttrain.core.errors import OptionError

WIDE = {"linf": Linf(1.0), "l2": L2(50.0)}
NORMS = pytest.mark.parametrize("norm", WIDE)


def boundary(model, images: Tensor, norm: str) -> tuple[Tensor, Tensor]:
    """Distance of each image to the boundary of a linear model of two classes (B,), and the
    boundary's normal.
    """
    w = (model.weight[0] - model.weight[1]).detach()
    margin = (images.flatten(1) @ w + model.bias[0] - model.bias[1]).abs().detach()
    return margin / (w.abs().sum() if norm == "linf" else w.norm()), w


def still(model, counting):
    """A counting model that says that it draws nothing."""
    counted = counting(model)
    counted.random = False
    return counted


@NORMS
def test_a_linear_models_nearest_adversarial_image(norm, linear, images, streams):
    """Within 10 % (Linf) and 5 % (L2) of the closed form after 30 steps, and never nearer."""
    model, x = linear(classes=2), images()
    y = model(x).argmax(1)
    attack = HopSkipJump(steps=30, nearest=True, threat=WIDE[norm])
    found = attack(model, x, y, streams())
    distance, best = attack.threat.distance(found, x), boundary(model, x, norm)[0]
    assert (model(found).argmax(1) != y).all()
    assert (distance > 0.999 * best).all()
    assert (distance < (1.10 if norm == "linf" else 1.05) * best).all()


@NORMS
def test_more_steps_come_nearer(norm, linear, images, streams):
    model, x = linear(classes=2), images()
    y = model(x).argmax(1)
    medians = []
    for steps in (0, 3, 12):
        attack = HopSkipJump(steps=steps, nearest=True, threat=WIDE[norm])
        medians.append(attack.threat.distance(attack(model, x, y, streams()), x).median().item())
    assert medians[0] > 1.2 * medians[1] > 1.2 * medians[2]


@pytest.mark.parametrize("share", [0.7, 1.5])
@NORMS
def test_inside_ball_and_box_and_adversarial_where_the_ball_allows(
    share, norm, linear, images, streams
):
    """With half as much room again as the boundary is away every image falls, with 0.7 of it none
    can.
    """
    model, x = linear(classes=2), images()
    y = model(x).argmax(1)
    distance = boundary(model, x, norm)[0]
    for i in range(len(x)):
        epsilon = share * distance[i].item()
        threat = Linf(epsilon) if norm == "linf" else L2(epsilon)
        found = HopSkipJump(steps=12, threat=threat)(
            model, x[i : i + 1], y[i : i + 1], streams()[i : i + 1]
        )
        assert threat.distance(found, x[i : i + 1]) <= epsilon + 1e-6
        assert found.min() >= 0
        assert found.max() <= 1
        assert (model(found).argmax(1) != y[i]).all() == (share > 1)


@NORMS
def test_the_box_is_respected_on_the_way(norm, counting, linear, streams):
    x = (2 * torch.rand(4, 3, 8, 8, generator=torch.Generator().manual_seed(3)) - 0.5).clamp(0, 1)

    class Boxed(nn.Module):
        def forward(self, images):
            assert images.min() >= 0
            assert images.max() <= 1
            return linear(classes=2)(images)

    found = HopSkipJump(steps=5, threat=WIDE[norm])(
        Boxed(), x, linear(classes=2)(x).argmax(1), streams()
    )
    assert found.min() >= 0
    assert found.max() <= 1


@NORMS
def test_what_comes_back_is_clear_of_the_boundary(norm, linear, images, streams):
    """The nearest point touches the boundary, where another rounding decides; the one returned does
    not.
    """
    model, x = linear(classes=2), images()
    y = model(x).argmax(1)
    distance = boundary(model, x, norm)[0]
    threat = Linf(2 * distance.max().item()) if norm == "linf" else L2(2 * distance.max().item())
    margins, distances = [], []
    for change in ({"nearest": True, "clearance": 0}, {"nearest": True}, {}):
        found = HopSkipJump(steps=12, threat=threat, **change)(model, x, y, streams())
        logits = model(found)
        assert (logits.argmax(1) != y).all()
        margins.append((logits[:, 0] - logits[:, 1]).abs())
        distances.append(threat.distance(found, x))
    assert (margins[0] < 1e-3).all()
    assert (margins[1] > 5 * margins[0]).all()
    assert (margins[2] > 0.05).all()
    torch.testing.assert_close(distances[1], 1.01 * distances[0])


@NORMS
def test_the_estimate_points_along_the_gradient(norm, linear, images, streams):
    """On a linear model's boundary 2,000 answers in 192 dimensions give a cosine above 0.85 (Linf:
    of the signs, 0.65).

    In theory the cosine is about sqrt(r / (1 + r)), r = 2 B / (pi d): 0.93, and 2/pi arcsin of it
    for the signs.
    """
    model, x = linear(classes=2), images()
    y = model(x).argmax(1)
    w = boundary(model, x, norm)[1]
    margin = x.flatten(1) @ w + (model.bias[0] - model.bias[1]).detach()
    points = x - (margin / w.norm() ** 2)[:, None].mul(w).view_as(x)
    attack = HopSkipJump(threat=WIDE[norm])
    v = attack.normal(model, points, y, torch.full((4,), 0.05), 2000, streams())
    away = (1 - 2 * (y == 0).float())[:, None] * w
    if norm == "linf":
        assert (v.abs() == 1).all()
        away = away.sign()
    else:
        torch.testing.assert_close(v.flatten(1).norm(dim=1), torch.ones(4))
    cosine = torch.cosine_similarity(v.flatten(1), away, dim=1)
    assert (cosine > (0.65 if norm == "linf" else 0.85)).all()
    fewer = attack.normal(model, points, y, torch.full((4,), 0.05), 50, streams())
    assert torch.cosine_similarity(fewer.flatten(1), away, dim=1).mean() < cosine.mean()


def test_the_baseline_matters_where_the_answers_are_uneven(linear, images, streams):
    """Beyond the boundary most answers agree; without the mean of phi taken off, they would drown
    the rest.
    """
    model, x = linear(classes=2), images()
    y = model(x).argmax(1)
    distance, w = boundary(model, x, "l2")
    away = (1 - 2 * (y == 0).float())[:, None] * w / w.norm()
    delta = 0.5
    points = x + ((distance + 1.0 * delta / math.sqrt(192))[:, None] * away).view_as(x)
    v = HopSkipJump(threat=L2(50.0)).normal(
        model, points, y, torch.full((4,), delta), 2000, streams()
    )
    assert (torch.cosine_similarity(v.flatten(1), away, dim=1) > 0.8).all()


def test_answers_that_all_agree_leave_a_direction(linear, images, streams):
    model, x = linear(classes=2), images()
    y = model(x).argmax(1)
    v = HopSkipJump(threat=L2()).normal(model, x, y, torch.full((4,), 1e-4), 20, streams())
    torch.testing.assert_close(v.flatten(1).norm(dim=1), torch.ones(4))


@NORMS
def test_one_seed_one_result(norm, curved, random_linear, images, streams):
    attack = HopSkipJump(steps=3, votes=3, threat=WIDE[norm])
    for model in (curved(), random_linear(4)):
        y = (
            model(images(), streams()).argmax(1)
            if hasattr(model, "takes_rng")
            else model(images()).argmax(1)
        )
        first = attack(model, images(), y, streams())
        assert torch.equal(attack(model, images(), y, streams()), first)
        assert not torch.equal(attack(model, images(), y, streams(seed=1)), first)


@NORMS
def test_an_image_is_attacked_alone_as_in_its_batch(norm, curved, random_linear, images, streams):
    attack = HopSkipJump(steps=4, votes=3, threat=WIDE[norm])
    x, y, order = images(8), torch.arange(8) % 3, torch.tensor([6, 0, 3])
    for model in (curved(), random_linear(4)):
        whole = attack(model, x, y, streams(8))
        part = attack(model, x[order], y[order], streams(8)[order])
        assert ((part - whole[order]).abs() < 1e-4).double().mean() > 0.99


@pytest.mark.parametrize(
    "change", [{}, {"nearest": True}, {"until_inside": True}, {"steps": 0}], ids=str
)
@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_cost_is_an_upper_bound(change, norm, linear, random_linear, counting, images, streams):
    attack = replace(HopSkipJump(steps=3, votes=3, threat=WIDE[norm]), **change)
    cost = attack.cost()
    assert cost.gradients == 0
    for model in (still(linear(), counting), counting(linear()), counting(random_linear())):
        y = linear()(images()).argmax(1)
        attack(model, images(), y, streams())
        assert model.gradients == 0
        assert 0 < model.queries <= 4 * cost.queries


def test_budgets_are_the_papers():
    attack = HopSkipJump()
    assert [attack.evaluations_at(t) for t in (1, 4, 64, 20_000)] == [100, 200, 800, 10_000]
    one = (
        replace(attack, steps=1, nearest=True).cost().queries
        - replace(attack, steps=0, nearest=True).cost().queries
    )
    assert one == 100 + 20 + 24 + len(BACK)
    assert attack.cost().queries - replace(attack, nearest=True).cost().queries == len(WAYS) - 1
    assert attack.cost().queries - replace(attack, nearest=True, clearance=0).cost().queries == len(
        WAYS
    )


def test_a_random_model_is_never_asked_twice_with_the_same_streams(
    random_linear, counting, images, streams
):
    model = counting(random_linear(4))
    HopSkipJump(steps=2, votes=3)(model, images(8), torch.arange(8) % 3, streams(8))
    assert len(model.keys) == len(set(model.keys)) == model.queries


class Coin(nn.Module):
    """Answers at random, whatever it sees."""

    takes_rng = True

    def forward(self, images, rng):
        return rng.fold("coin").normal((2,))


@pytest.mark.parametrize("votes", [1, 4])
@NORMS
def test_a_verdict_that_flickers_neither_crashes_nor_hangs(votes, norm, counting, images, streams):
    attack = HopSkipJump(steps=4, votes=votes, tries=5, threat=replace(WIDE[norm], epsilon=0.1))
    model = counting(Coin())
    found = attack(model, images(8), torch.arange(8) % 2, streams(8))
    assert found.isfinite().all()
    assert attack.threat.distance(found, images(8)).max() <= 0.1 + 1e-6
    assert model.queries <= 8 * attack.cost().queries


def test_a_random_model_is_led_across_its_mean_boundary(random_linear, images, streams):
    """Scored by fresh draws, images that are right in most of them are wrong in more than half of
    them afterwards.
    """
    model, x = random_linear(2), images(8)
    many = [streams(8, seed=9).fold(k) for k in range(200)]

    def right(points: Tensor, labels: Tensor) -> Tensor:
        return (
            torch.stack([model(points, rng).argmax(1) == labels for rng in many]).double().mean(0)
        )

    labels = (right(x, torch.ones(8, dtype=torch.int64)) > 0.5).long()
    sure = right(x, labels) > 0.7
    assert sure.sum() >= 3
    attack = HopSkipJump(steps=6, votes=5, threat=Linf(0.2))
    found = attack(model, x, labels, streams(8))
    assert (right(found, labels)[sure] < 0.4).all()


def test_gamma_left_open_is_the_papers_or_the_number_of_pixel_values(linear, random_linear, images):
    assert HopSkipJump().gamma_for(linear(), images()) == 1
    assert HopSkipJump().gamma_for(random_linear(), images()) == 192
    assert HopSkipJump(gamma=7.0).gamma_for(random_linear(), images()) == 7


def test_an_image_without_any_adversarial_one_comes_back_as_it_was(images, streams, counting):
    class Constant(nn.Module):
        def forward(self, images):
            return images.new_tensor([2.0, 0.0]).expand(len(images), 2)

    model = counting(Constant())
    attack = HopSkipJump(tries=7)
    assert torch.equal(
        attack(model, x := images(), torch.zeros(4, dtype=torch.int64), streams()), x
    )
    assert model.queries == 4 * (1 + 7)


def test_an_image_that_is_misclassified_already_comes_back_as_it_was(
    linear, counting, images, streams
):
    model, x = linear(), images()
    y = model(x).argmax(1)
    y[1] = (y[1] + 1) % 3
    attack = HopSkipJump(steps=3)
    found = attack(model, x, y, streams())
    assert torch.equal(found[1], x[1])
    rest = torch.tensor([0, 2, 3])
    torch.testing.assert_close(found[rest], attack(model, x[rest], y[rest], streams()[rest]))
    counted = counting(model)
    assert torch.equal(attack(counted, x, (model(x).argmax(1) + 1) % 3, streams()), x)
    assert counted.queries == 4


def test_no_images_give_no_images(linear, images, streams):
    assert HopSkipJump()(
        linear(), images()[:0], torch.zeros(0, dtype=torch.int64), streams()[:0]
    ).shape == (0, 3, 8, 8)


def test_coarser_noise_finds_what_pixelwise_noise_does_not(images, streams):
    """Adversarial only where neighbouring pixels agree: noise of single pixels never is, images
    are.
    """

    class Rough(nn.Module):
        def forward(self, images):
            edges = (images[..., 1:] - images[..., :-1]).abs().mean(dim=(1, 2, 3))
            return torch.stack([edges, torch.full_like(edges, 0.2)], dim=1)

    x, zeros = images(), torch.zeros(4, dtype=torch.int64)
    x = 0.5 + (x - 0.5).sign() * 0.45  # edges of 0.45 on average
    attack = HopSkipJump(steps=2, tries=3, threat=Linf(1.0))
    assert (Rough()(x).argmax(1) == 0).all()
    assert (Rough()(attack(Rough(), x, zeros, streams())).argmax(1) == 1).all()
    assert torch.equal(replace(attack, tries=1)(Rough(), x, zeros, streams()), x)


def test_until_inside_saves_queries_and_keeps_the_verdicts(linear, counting, images, streams):
    model, x = linear(classes=2), images()
    y = model(x).argmax(1)
    threat = Linf(1.5 * boundary(model, x, "linf")[0].median().item())
    queries, verdicts = [], []
    for until_inside in (False, True):
        counted = still(model, counting)
        found = HopSkipJump(steps=12, until_inside=until_inside, threat=threat)(
            counted, x, y, streams()
        )
        queries.append(counted.queries)
        verdicts.append(model(found).argmax(1) == y)
    assert torch.equal(*verdicts)
    assert not verdicts[0].all()
    assert queries[1] < 0.8 * queries[0]


@pytest.mark.parametrize(("halvings", "reached"), [(3, False), (4, True)])
def test_steps_are_halved_until_adversarial_and_no_more_often_than_said(
    halvings, reached, images, streams
):
    """Misclassified where the mean lies above 0.5 and below 0.56: of 0.4, 0.2, 0.1 and 0.05 above
    0.5, the last one.
    """

    class Shell(nn.Module):
        def forward(self, images):
            mean = images.mean(dim=(1, 2, 3))
            wrong = (mean > 0.5) & (mean < 0.56)
            return torch.stack([~wrong, wrong], dim=1).float()

    x, zeros = torch.full((2, 3, 8, 8), 0.5), torch.zeros(2, dtype=torch.int64)
    attack = HopSkipJump(halvings=halvings)
    found, moved = attack.walk(
        Shell(), x, torch.ones_like(x), torch.full((2,), 0.4), zeros, streams(2)
    )
    assert moved.tolist() == [reached] * 2
    torch.testing.assert_close(found, x + 0.05 * reached)


PLAIN = HopSkipJump(steps=3, nearest=True, threat=Linf(1.0))


@pytest.mark.parametrize(
    "change",
    [
        {"steps": 2},
        {"evaluations": 50},
        {"most_evaluations": 120},
        {"gamma": 1000.0},
        {"search_steps": 4},
        {"nearest": False},
        {"clearance": 0.2},
        {"threat": L2(50.0)},
        {"threat": Linf(0.02)},
    ],
    ids=str,
)
def test_every_field_changes_the_outcome(change, curved, images, streams):
    model, x = curved(), images()
    y = model(x).argmax(1)
    plain = PLAIN(model, x, y, streams())
    assert (replace(PLAIN, **change)(model, x, y, streams()) - plain).abs().max() > 1e-4


def test_votes_change_the_outcome_on_random_models(random_linear, images, streams):
    model = random_linear()
    y = model(images(), streams(seed=9)).argmax(1)
    results = [replace(PLAIN, votes=votes)(model, images(), y, streams()) for votes in (1, 5)]
    assert (results[0] - results[1]).abs().max() > 1e-4


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("steps", -1),
        ("evaluations", 1),
        ("gamma", 0.0),
        ("tries", 0),
        ("votes", 0),
        ("halvings", 0),
        ("chunk", 0),
    ],
)
def test_impossible_options_are_named(option, value):
    with pytest.raises(OptionError, match=rf"^{option} = "):
        HopSkipJump(**{option: value})


@NORMS
def test_no_farther_than_foolbox_at_equal_budgets(norm, patterns, counting, streams):
    """Each image's mean distance over two seeds: the median over 24 images no more than 2 % above
    Foolbox's, with no more queries.
    """
    foolbox = pytest.importorskip("foolbox")
    model, x, y = patterns[0], patterns[1][:24], patterns[2][:24]
    attack = HopSkipJump(steps=6, nearest=True, threat=WIDE[norm])
    theirs, ours = counting(model).eval(), still(model, counting)
    distances: dict[str, list[Tensor]] = {"theirs": [], "ours": []}
    for seed in range(2):
        torch.manual_seed(seed)
        bounded = foolbox.PyTorchModel(theirs, bounds=(0, 1), device="cpu")
        found = foolbox.attacks.HopSkipJumpAttack(steps=6, constraint=norm)(
            bounded, x, y, epsilons=None
        )[1]
        distances["theirs"].append(attack.threat.distance(found, x))
        found = attack(ours, x, y, streams(24, seed))
        assert (model(found).argmax(1) != y).all()
        distances["ours"].append(attack.threat.distance(found, x))
    assert ours.queries <= theirs.queries
    medians = {name: torch.stack(each).mean(dim=0).median() for name, each in distances.items()}
    assert medians["ours"] <= 1.02 * medians["theirs"]
