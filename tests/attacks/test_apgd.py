"""APGD: closed forms on linear models, the algorithm written down once more, and what it chooses to
return.
"""

import math
from dataclasses import dataclass, field, replace

import pytest
import torch
from torch import Tensor, nn

from robusttrain.attacks import (
    APGD,
    DLR,
    L2,
    Average,
    AverageLogits,
    CrossEntropy,
    Diverse,
    FiniteDifference,
    GradientEstimator,
    Linf,
    Margin,
    Normalized,
    ProjectedGradient,
    Sign,
    Smooth,
    TargetedCrossEntropy,
    TargetedDLR,
    TargetedMargin,
    ask_twice,
)
from robusttrain.attacks.algorithms.apgd import checkpoints
from robusttrain.attacks.parts.objectives import rank_targets
from robusttrain.core.errors import OptionError
from robusttrain.core.rng import Rng

LABELS = torch.tensor([0, 1, 0, 1])


def margins(model: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
    return Margin()(model(images), labels).detach()


@pytest.mark.parametrize("objective", [CrossEntropy(), Margin()], ids=str)
@pytest.mark.parametrize("random_start", [False, True])
@pytest.mark.parametrize("threat", [Linf(0.031), L2(0.4)], ids=str)
def test_two_classes_linear_reach_the_best_point_of_the_ball(
    threat, random_start, objective, linear, images, streams
):
    """The margin rises by epsilon |w|_1 (Linf) or epsilon |w|_2 (L2), w the difference of the two
    rows.
    """
    model, x = linear(classes=2), images()
    adversarial = APGD(30, random_start=random_start, threat=threat, objective=objective)(
        model, x, LABELS, streams()
    )
    w = (model.weight[1 - LABELS] - model.weight[LABELS]).detach()
    direction, rise = (
        (w.sign(), w.abs().sum(dim=1)) if threat.norm == "linf" else (None, w.norm(dim=1))
    )
    direction = w / w.norm(dim=1, keepdim=True) if direction is None else direction
    # Where the cross entropy is near zero, float32 no longer tells the very best points apart.
    torch.testing.assert_close(
        adversarial, x + threat.epsilon * direction.view_as(x), rtol=0, atol=2e-4
    )
    gained = margins(model, adversarial, LABELS) - margins(model, x, LABELS)
    torch.testing.assert_close(gained, threat.epsilon * rise, rtol=1e-3, atol=1e-5)


def test_the_box_is_respected_on_the_way(linear, streams):
    model, x = (
        linear(classes=2),
        torch.rand(4, 3, 8, 8, generator=torch.Generator().manual_seed(0)).round(),
    )
    adversarial = APGD(10)(model, x, LABELS, streams())
    w = (model.weight[1 - LABELS] - model.weight[LABELS]).detach()
    torch.testing.assert_close(
        adversarial, (x + 0.031 * w.sign().view_as(x)).clamp(0, 1), rtol=0, atol=1e-6
    )


def test_checkpoints_by_hand():
    """p = 0.22, 0.41, 0.57, 0.70, 0.80, 0.87, 0.93, 0.99: strides of 22, 19, 16, 13, 10, 7,
    then 6.
    """
    assert checkpoints(100) == [22, 41, 57, 70, 80, 87, 93, 99]
    assert checkpoints(1000) == [220, 410, 570, 700, 800, 870, 930, 990]
    assert checkpoints(20) == [5, 9, 12, 14, 16, 18, 19, 20]
    assert checkpoints(10) == [3, 5, 6, 7, 8, 9, 10]
    assert checkpoints(1) == [1]


@dataclass(frozen=True)
class Scripted(GradientEstimator):
    """Losses from a script, gradient always (1, ...); keeps where it was asked."""

    losses: tuple[float, ...]
    asked: list[Tensor] = field(default_factory=list)
    evaluations = 1

    def __call__(self, loss_fn, images, rng):
        loss = torch.full((len(images),), self.losses[len(self.asked)])
        self.asked.append(images.clone())
        return loss, torch.ones_like(images)


STEPS = 20  # checkpoints 5, 9, 12, 14, 16, 18, 19, 20


def visited(losses: list[float], linear, streams) -> list[float]:
    """One pixel of x^(0), x^(1), ..., in units of epsilon, for a ball so wide that nothing is
    projected.
    """
    script = Scripted(tuple(losses))
    x = torch.full((1, 3, 8, 8), 0.5)
    threat = Linf(0.001, clip=False)
    attack = APGD(len(losses) - 1, random_start=False, threat=threat, gradient=script)
    found = attack(linear(), x, LABELS[:1], streams(1))
    assert torch.equal(found, script.asked[max(range(len(losses)), key=losses.__getitem__)])
    return [round((point - x)[0, 0, 0, 0].item() / threat.epsilon, 3) for point in script.asked]


def test_the_loss_that_rises_keeps_the_step_size(linear, streams):
    """The gradient points to one corner: x^(1) is there and stays."""
    assert visited([float(k) for k in range(STEPS + 1)], linear, streams) == [0.0] + [1.0] * STEPS


def test_a_loss_that_never_rises_goes_back_to_the_best(linear, streams):
    """At 5, 9, 12, ... back to x^(0), eta halved; the next point is off by 0.75 (z - x) + 0.25
    (x^(0) - x^(k-1)).
    """
    points = visited([0.0] * (STEPS + 1), linear, streams)
    assert points[:6] == [0, 1, 1, 1, 1, 1]
    # eta is 1 epsilon after the first checkpoint: z = 1, x - x_before = -1
    assert points[6] == 0.75 - 0.25
    assert points[7] == pytest.approx(0.5 + 0.75 * 0.5 + 0.25 * 0.5)
    # at 9 halved to 0.5: z = 0.5, x_before is x^(8)
    assert points[10] == pytest.approx(0.75 * 0.5 - 0.25 * points[8], abs=2e-3)


@pytest.mark.parametrize(
    ("losses", "then"),
    [([9.0, 9.5, 9.6, 9.7, 9.4, 9.8], 1.0), ([9.0, 1.0, 2.0, 3.0, 4.0, 3.5], 0.5)],
    ids=["4 of 5 rise", "3 of 5 rise"],
)
def test_three_quarters_of_the_steps_must_rise(losses, then, linear, streams):
    """At the first checkpoint, 5, fewer than 3.75 rises: back to the best, which is x^(0), with
    half of eta.
    """
    assert visited([*losses, *[0.0] * (STEPS - 5)], linear, streams)[6] == then


def test_a_best_that_stands_still_halves_unless_it_was_halved_just_before(linear, streams):
    """All but one step rise, but never above x^(0): halved at 5, not at 9, where eta is new, and
    again at 12.
    """
    losses = [
        9.0,
        1.0,
        2.0,
        3.0,
        4.0,
        5.0,
        1.0,
        2.0,
        3.0,
        4.0,
        5.0,
        6.0,
        7.0,
        *[0.0] * (STEPS - 12),
    ]
    points = visited(losses, linear, streams)
    assert points[6] == pytest.approx(0.75 * 1.0 - 0.25)
    assert points[7:13] == [1.0] * 6
    assert points[13] == pytest.approx(0.75 * 0.5 - 0.25)


def test_a_start_whose_loss_is_nan_is_left_behind(linear, streams):
    script = Scripted((math.nan, 1.0, 2.0, math.nan))
    x = torch.full((1, 3, 8, 8), 0.5)
    found = APGD(3, random_start=False, gradient=script)(linear(), x, LABELS[:1], streams(1))
    assert torch.equal(found, script.asked[2])
    assert (found - x).amin() > 0.03


def reference(attack: APGD, model: nn.Module, image: Tensor, label: Tensor) -> tuple[Tensor, float]:
    """Algorithm 1 for one image, as it is printed: no batch, plain numbers; x_max and f_max."""

    def value(x):
        x = x.clone().requires_grad_()
        loss = attack.objective(model(x[None]), label[None])[0]
        (slope,) = torch.autograd.grad(loss, x)
        return loss.item(), slope

    def project(x):
        change = x - image
        if attack.threat.norm == "linf":
            change = change.clamp(-attack.threat.epsilon, attack.threat.epsilon)
        elif change.norm() > attack.threat.epsilon:
            change = change * attack.threat.epsilon / change.norm()
        return (image + change).clamp(0, 1)

    def direction(slope):
        return slope.sign() if attack.threat.norm == "linf" else slope / slope.norm()

    n, eta = attack.steps, 2 * attack.threat.epsilon
    p = [0.0, 0.22]
    while p[-1] + max(p[-1] - p[-2] - 0.03, 0.06) <= 1 + 1e-9:
        p.append(p[-1] + max(p[-1] - p[-2] - 0.03, 0.06))
    w = [math.ceil(round(share * n, 6)) for share in p]
    x, fs = [image], []
    fs.append(value(image)[0])
    x.append(project(image + eta * direction(value(image)[1])))
    fs.append(value(x[1])[0])
    f_max, x_max = max(zip(fs, x, strict=True), key=lambda pair: pair[0])
    etas, bests, rises = {0: eta}, {0: fs[0]}, [fs[1] > fs[0]]
    for k in range(1, n):
        z = project(x[k] + eta * direction(value(x[k])[1]))
        x.append(project(x[k] + 0.75 * (z - x[k]) + 0.25 * (x[k] - x[k - 1])))
        rises.append(value(x[k + 1])[0] > value(x[k])[0])
        if value(x[k + 1])[0] > f_max:
            f_max, x_max = value(x[k + 1])[0], x[k + 1]
        if k + 1 in w:
            j = w.index(k + 1)
            first = sum(rises[w[j - 1] : w[j]]) < 0.75 * (w[j] - w[j - 1])
            second = etas[w[j - 1]] == eta and bests[w[j - 1]] == f_max
            bests[k + 1] = f_max
            etas[k + 1] = (
                eta  # before halving: at the next checkpoint it differs if it was halved here
            )
            if first or second:
                eta, x[k + 1] = eta / 2, x_max
    return x_max, f_max


@pytest.mark.parametrize("threat", [Linf(0.1), L2(0.7)], ids=str)
@pytest.mark.parametrize("objective", [CrossEntropy(), DLR()], ids=str)
def test_it_is_algorithm_1(objective, threat, curved, images):
    model, x = curved().double(), images(6).double()
    labels = model(x).argmax(1)
    attack = APGD(40, random_start=False, threat=threat, objective=objective)
    found = attack(model, x, labels)
    for i in range(len(x)):
        expected, f_max = reference(attack, model, x[i], labels[i])
        reached = objective(model(found[i : i + 1]), labels[i : i + 1]).item()
        # Else some other point, misclassified with a lower cross entropy, may have been preferred.
        if isinstance(objective, DLR) or Margin()(model(expected[None]), labels[i : i + 1]) > 0:
            assert reached == pytest.approx(f_max, rel=1e-9)
            torch.testing.assert_close(found[i], expected, rtol=0, atol=1e-7)


@pytest.mark.parametrize("threat", [Linf(0.05), L2(0.5)], ids=str)
@pytest.mark.parametrize("objective", [CrossEntropy(), DLR()], ids=str)
def test_it_reaches_a_higher_loss_than_plain_ascent_with_as_many_steps(
    objective, threat, convnet, images, streams
):
    model, x = convnet(4), images(32)
    labels = model(x).argmax(1)
    options = {"threat": threat, "objective": objective}
    adaptive = APGD(50, **options)(model, x, labels, streams(32))
    rule = Sign() if threat.norm == "linf" else Normalized()
    plain = ProjectedGradient(51, relative_step_size=0.25, rule=rule, **options)(
        model, x, labels, streams(32)
    )
    assert (
        objective(model(adaptive), labels).mean() >= objective(model(plain), labels).mean() - 1e-4
    )


@pytest.mark.parametrize("threat", [Linf(0), L2(0)], ids=str)
def test_epsilon_zero_returns_the_images(threat, curved, images, streams):
    for random_start in (True, False):
        attack = APGD(7, threat=threat, random_start=random_start, restarts=2)
        assert torch.equal(attack(curved(), images(), LABELS, streams()), images())


def test_more_steps_and_more_restarts_are_never_weaker(curved, images, streams):
    """A run of fewer steps is no prefix of a longer one (the checkpoints move), but restarts
    are.
    """
    model, x = curved(), images()
    labels = model(x).argmax(1)
    reached = []
    for restarts in (1, 2, 5):
        attack = APGD(6, restarts=restarts, threat=Linf(0.004), objective=DLR())
        reached.append(DLR()(model(attack(model, x, labels, streams())), labels))
    assert (reached[0] < 0).all()  # nobody is broken yet, so nobody left
    assert (reached[1] >= reached[0]).all()
    assert (reached[2] >= reached[1]).all()
    assert (reached[2] > reached[0]).any()


@pytest.mark.parametrize("threat", [Linf(0.1), L2(0.7)], ids=str)
def test_the_best_of_all_visited_points_is_returned(threat, curved, images, streams):
    """DLR is positive exactly where the image is misclassified: nothing visited is better than what
    is returned.
    """
    model, x = curved(), images()
    labels = model(x).argmax(1)
    seen: list[Tensor] = []

    class Recorded(nn.Module):
        def forward(self, images):
            logits = model(images)
            seen.append(DLR()(logits.detach(), labels))
            return logits

    found = APGD(30, threat=threat, objective=DLR())(Recorded(), x, labels, streams())
    assert len(seen) == 33
    torch.testing.assert_close(
        DLR()(model(found), labels), torch.stack(seen[2:]).amax(dim=0), rtol=1e-5, atol=1e-6
    )


class Valley(nn.Module):
    """Class 1 wins only where the first pixel is in [0.52, 0.54]; cross entropy goes on rising
    beyond.
    """

    def forward(self, images):
        a = images[:, 0, 0, 0]
        narrow = ((a >= 0.52) & (a <= 0.54)).float() * 0.6
        others = torch.stack(
            [torch.ones_like(a)] + [0.4 + 2 * (a - 0.5).clamp(max=0.25)] * 8, dim=1
        )
        others[:, 1] = others[:, 1] + narrow
        return others


def test_a_misclassified_point_comes_before_a_higher_loss(streams):
    model, x, labels = Valley(), torch.full((64, 1, 4, 4), 0.5), torch.zeros(64, dtype=torch.int64)
    # Some random starts lie in the valley; the way from there leads out of it
    attack = APGD(10, threat=Linf(0.1))
    found = attack(model, x, labels, streams(64))
    high = CrossEntropy()(model(x + 0.1), labels)
    broken = model(found).argmax(1) == 1
    assert 0 < broken.sum() < 64
    assert (CrossEntropy()(model(found), labels) < high)[broken].all()

    class Random(nn.Module):
        """Differs by a hair: one misclassified draw would be luck, and the loss decides."""

        takes_rng = True

        def forward(self, images, rng):
            return model(images) + 1e-4 * rng.uniform((1,))

    torch.testing.assert_close(
        CrossEntropy()(model(attack(Random(), x, labels, streams(64))), labels), high
    )


def test_ask_twice_tells_random_images_from_others(linear, random_linear, images, streams):
    class Half(nn.Module):
        """Random for bright images; always NaN for those with a black corner."""

        takes_rng = True

        def forward(self, images, rng):
            noise = rng.uniform((3,)) * (images.mean(dim=(1, 2, 3)) > 0.5)[:, None]
            logits = linear()(images) + noise
            return torch.where((images[:, 0, 0, 0] == 0)[:, None], torch.nan, logits)

    x = images()
    x[1] = x[1] * 0.1 + 0.8
    x[2, 0, 0, 0] = 0
    logits, random = ask_twice(Half(), x, streams())
    assert torch.equal(random, x.mean(dim=(1, 2, 3)) > 0.5) or random.tolist()[2] is False
    assert random[1]
    assert logits.isnan().any(dim=1).tolist() == [False, False, True, False]
    assert ask_twice(random_linear(), x[:1], streams(1))[1].all()
    assert not ask_twice(linear(), x, streams())[1].any()


@pytest.mark.parametrize(
    "objective", [TargetedCrossEntropy(), TargetedMargin("second"), TargetedDLR()], ids=str
)
def test_the_last_target_is_reached_when_only_it_can_be(objective, images, streams):
    """Only class 3 can win, the least likely one: one target misses it, all targets find it."""

    class OneDoor(nn.Module):
        def forward(self, images):
            a = images.flatten(1).mean(dim=1) - 0.5
            door = torch.where(a > 0.04, 1.5, -1.0) + a
            still = [torch.full_like(a, value) for value in (1.0, 0.8, 0.7, 0.6)]
            return torch.stack(
                [still[0], still[1] - 2 * a, still[2] - 2 * a, door, still[3] - 2 * a], dim=1
            )

    x, labels = torch.full((4, 1, 4, 4), 0.5), torch.zeros(4, dtype=torch.int64)
    objective = replace(objective, target="second")
    attack = APGD(10, random_start=False, threat=Linf(0.05), objective=objective)
    assert (attack(OneDoor(), x, labels, streams()).flatten(1).mean(dim=1) < 0.5).all()
    found = replace(attack, targets=9)(OneDoor(), x, labels, streams())
    assert (OneDoor()(found).argmax(1) == 3).all()


def test_targets_are_ranked_without_the_true_class(streams):
    logits, labels = (
        torch.tensor([[3.0, 1.0, 2.0, 0.0], [0.0, 1.0, 2.0, 3.0]]),
        torch.tensor([0, 1]),
    )
    ranked = rank_targets(logits, labels, streams(2), "second", 9)
    assert ranked.tolist() == [[2, 1, 3], [3, 2, 0]]
    assert rank_targets(logits, labels, streams(2), "least_likely", 2).tolist() == [[3, 1], [0, 2]]
    random = rank_targets(logits.repeat(50, 1), labels.repeat(50), streams(100), "random", 3)
    assert {tuple(row) for row in random[::2].tolist()} == {
        (1, 2, 3), (1, 3, 2), (2, 1, 3), (2, 3, 1), (3, 1, 2), (3, 2, 1)
    }  # fmt: skip


@pytest.mark.parametrize("random_model", [False, True])
@pytest.mark.parametrize(
    "attack",
    [
        APGD(5),
        APGD(5, restarts=3),
        APGD(5, threat=L2(0.02), gradient=Average(3)),
        APGD(4, gradient=AverageLogits(3), restarts=2),
        APGD(4, objective=TargetedDLR()),
        APGD(4, objective=TargetedDLR(), targets=3, restarts=2),
        APGD(4, objective=TargetedMargin(), targets=9),
        APGD(4, gradient=Smooth(3)),
        APGD(4, gradient=Average(2, Diverse())),
        APGD(4, gradient=FiniteDifference(3)),
    ],
    ids=str,
)
def test_declared_cost_is_counted_cost_where_nobody_is_broken(
    attack, random_model, curved, random_linear, counting, images, streams
):
    model = counting(random_linear(10) if random_model else curved(10))
    x = images()
    attack = replace(attack, threat=replace(attack.threat, epsilon=1e-5))
    labels = model.model(x).argmax(1)
    attack(model, x, labels, streams())
    assert (model.gradients, model.queries) == tuple(4 * part for part in attack.cost())


@pytest.mark.parametrize(
    "gradient",
    [Smooth(2, sigma=0.3), Diverse(1.0, smallest=0.5), FiniteDifference(2, size=0.3)],
    ids=str,
)
def test_the_verdict_is_about_the_image_and_not_about_the_copies_of_an_estimate(
    gradient, curved, images, streams
):
    """Copies are wrong where the image is right, and right where the image is wrong."""
    count = 64
    model, x = curved(10), images(count)
    labels, rng = model(x).argmax(1), streams(count)
    attack = APGD(3, gradient=gradient, threat=Linf(0.01))
    aim = attack.objective.aim(model, x, labels, rng)
    nowhere = torch.zeros(count, dtype=torch.bool)
    found, _, wrong = attack.climb(model, x, x, labels, aim, nowhere, rng)
    assert 0 < int(wrong.sum()) < count
    assert torch.equal(wrong, model(found).argmax(1) != labels)


def test_broken_images_are_spared_further_restarts_and_disturb_nobody(
    curved, counting, images, streams
):
    model, x = counting(curved()), images(8)
    labels = model.model(x).argmax(1)
    attack = APGD(10, restarts=4, threat=Linf(0.012))
    found = attack(model, x, labels, streams(8))
    wrong = (model.model(found).argmax(1) != labels).sum().item()
    assert 0 < wrong < 8
    assert 8 * 11 < model.gradients < 8 * attack.cost().gradients
    for i in range(8):
        alone = attack(curved(), x[i : i + 1], labels[i : i + 1], streams(8)[torch.tensor([i])])
        assert ((alone[0] - found[i]).abs() < 1e-5).double().mean() > 0.99


PLAIN = APGD(6, objective=TargetedDLR("least_likely"), threat=L2(0.05))


@pytest.mark.parametrize(
    "change",
    [
        {"steps": 12},
        {"restarts": 3},
        {"targets": 3},
        {"random_start": False},
        {"threat": L2(0.1)},
        {"threat": Linf(0.005)},
        {"objective": DLR()},
        {"objective": TargetedDLR("second")},
        {"gradient": Smooth(3)},
    ],
    ids=str,
)
def test_every_field_changes_the_outcome(change, curved, images, streams):
    model, x = curved(), images()
    labels = model(x).argmax(1)
    plain = PLAIN(model, x, labels, streams())
    assert (
        Margin()(model(plain), labels) < 0
    ).all()  # else the first misclassified point would do for all
    assert (replace(PLAIN, **change)(model, x, labels, streams()) - plain).abs().max() > 1e-5


@pytest.mark.parametrize(("target", "first"), [("second", [2, 1, 3]), ("least_likely", [3, 1, 2])])
def test_targets_are_tried_in_the_order_of_the_objective(target, first, linear, images, streams):
    """Images that all have logits in the same order, and a ball too small to change it."""
    model = linear(4)
    with torch.no_grad():
        model.bias.copy_(torch.tensor([30.0, 10.0, 20.0, 0.0]))
    tried = []

    class Told(TargetedMargin):
        def __call__(self, logits, goal):
            tried.append(goal.unique().tolist())
            return super().__call__(logits, goal)

    APGD(1, targets=3, objective=Told(target))(
        model, images(), torch.zeros(4, dtype=torch.int64), streams()
    )
    assert tried == [[target] for target in first for _ in range(2)]


@pytest.mark.parametrize("gradient", [Average(4), AverageLogits(4)], ids=str)
@pytest.mark.parametrize("targets", [None, 3])
def test_a_random_model_is_climbed_on_the_mean_of_its_draws(
    gradient, targets, random_linear, images, streams
):
    model, x = random_linear(5, scale=0.05), images(8)
    labels = super(type(model), model).forward(x).argmax(1)
    objective = CrossEntropy() if targets is None else TargetedDLR()
    found = APGD(20, targets=targets, objective=objective, gradient=gradient)(
        model, x, labels, streams(8)
    )

    def mean_loss(points):
        rng = Rng.for_images(9, torch.arange(8)).tile(50)
        return (
            Margin()(model(points.repeat(50, 1, 1, 1), rng), labels.repeat(50))
            .view(50, 8)
            .mean(dim=0)
        )

    assert (mean_loss(found) > mean_loss(x) + 0.1).all()
    assert Linf(0.031).distance(found, x).max() <= 0.031 + 1e-6


def test_a_restart_leaves_a_start_without_loss_and_gradient(curved, images, streams):
    """Loss and gradient are NaN at the image and finite elsewhere."""

    class Hole(nn.Module):
        def forward(self, images):
            hole = (images == x).flatten(1).all(dim=1)
            return curved()(images) * torch.where(hole, torch.nan, 1.0)[:, None]

    x = images()
    labels = curved()(x).argmax(1)
    found = APGD(10, restarts=2, random_start=False)(Hole(), x, labels, streams())
    assert found.isfinite().all()
    assert (Margin()(curved()(found), labels) > Margin()(curved()(x), labels)).all()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"steps": 0}, "^steps = "),
        ({"restarts": 0}, "^restarts = "),
        ({"targets": 0, "objective": TargetedDLR()}, "^targets = "),
        ({"targets": 3}, "^targets = 3: CrossEntropy has no target"),
    ],
)
def test_impossible_options_are_named(options, words):
    with pytest.raises(OptionError, match=words):
        APGD(**options)


def test_another_norm_is_refused():
    class L1(Linf):
        norm = "l1"

    with pytest.raises(OptionError, match="^threat = .*linf, l2"):
        APGD(threat=L1())
