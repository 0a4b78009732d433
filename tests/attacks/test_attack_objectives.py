"""Objectives: values by hand, what they are blind to, and what targeted ones aim at."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from robusttrain.attacks import (
    DLR,
    AwayFromPrediction,
    CrossEntropy,
    KLDivergence,
    Margin,
    SoftMargin,
    TargetedCrossEntropy,
    TargetedDLR,
    TargetedMargin,
    WrongProbability,
)
from robusttrain.attacks.parts.objectives import LogOdds, choose_targets
from robusttrain.core.rng import Rng

LOGITS = torch.tensor([[2.0, 1.0, 0.0, -1.0]])
LOG_SUM = math.log(math.exp(2) + math.exp(1) + 1 + math.exp(-1))
SOFTMAX = [math.exp(value - LOG_SUM) for value in (2, 1, 0, -1)]

#: The soft maximum of 1, 0 and -1 at half of their deviation, sqrt(2 / 3).
T = 0.5 * math.sqrt(2 / 3)
SOFT = T * math.log(math.exp(1 / T) + 1 + math.exp(-1 / T))


def several(count: int = 50, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    rng = torch.Generator().manual_seed(seed)
    return 3 * torch.randn(count, 5, generator=rng), torch.randint(5, (count,), generator=rng)


class Fixed(nn.Module):
    """Answers with the same logits whatever the images are."""

    def __init__(self, logits: torch.Tensor) -> None:
        super().__init__()
        self.logits = logits

    def forward(self, images):
        return self.logits


@pytest.mark.parametrize(
    ("objective", "goal", "value"),
    [
        (CrossEntropy(), 0, LOG_SUM - 2),
        (CrossEntropy(), 3, LOG_SUM + 1),
        (AwayFromPrediction(), 1, LOG_SUM - 1),
        (WrongProbability(), 0, math.log(1 - SOFTMAX[0])),
        (WrongProbability(), 3, math.log(1 - SOFTMAX[3])),
        (Margin(), 0, 1 - 2),
        (Margin(), 2, 2 - 0),
        (SoftMargin(0.5), 0, SOFT - 2),
        (SoftMargin(1e-4), 2, 2 - 0),
        (DLR(), 0, (1 - 2) / (2 - 0)),
        (DLR(), 3, (2 + 1) / (2 - 0)),
        (TargetedCrossEntropy(), 3, -1 - LOG_SUM),
        (TargetedMargin(), 3, -1 - 2),
        (TargetedMargin(), 0, 2 - 1),
        (TargetedDLR(), [0, 1], (1 - 2) / (2 - (0 - 1) / 2)),
        (TargetedDLR(), [2, 0], (2 - 0) / (2 - (0 - 1) / 2)),
        (KLDivergence(), SOFTMAX, 0.0),
        (KLDivergence(), [1.0, 0.0, 0.0, 0.0], LOG_SUM - 2),
        (KLDivergence(), [0.25] * 4, sum(0.25 * (math.log(0.25) - math.log(p)) for p in SOFTMAX)),
    ],
)
def test_values_by_hand(objective, goal, value):
    result = objective(LOGITS, torch.tensor([goal]))
    torch.testing.assert_close(
        result, torch.tensor([value], dtype=torch.float32), rtol=1e-5, atol=1e-6
    )


OBJECTIVES = [
    CrossEntropy(),
    WrongProbability(),
    Margin(),
    SoftMargin(),
    DLR(),
    AwayFromPrediction(),
    KLDivergence(),
    TargetedCrossEntropy(),
    TargetedMargin(),
    TargetedDLR(),
]


@pytest.mark.parametrize("objective", OBJECTIVES, ids=lambda objective: type(objective).__name__)
def test_one_number_per_image_that_the_other_images_do_not_change(objective, streams):
    logits, labels = several(6)
    goal = objective.aim(Fixed(logits), torch.zeros(6, 1, 1, 1), labels, streams(6))
    assert len(goal) == 6
    moved = logits + several(6, seed=1)[0]
    values = objective(moved, goal)
    assert values.shape == (6,)
    one_by_one = torch.cat([objective(moved[n : n + 1], goal[n : n + 1]) for n in range(6)])
    torch.testing.assert_close(values, one_by_one, rtol=1e-6, atol=1e-6)
    weights = torch.autograd.functional.jacobian(lambda z: objective(z, goal), moved)
    assert not (weights.abs().sum(dim=2) * (1 - torch.eye(6))).any()


@pytest.mark.parametrize("objective", [DLR(), TargetedDLR()], ids=["DLR", "TargetedDLR"])
def test_dlr_is_blind_to_scale_and_shift(objective):
    logits, labels = several()
    goal = labels if isinstance(objective, DLR) else torch.stack([labels, (labels + 1) % 5], dim=1)
    changed = 7.5 * logits + torch.linspace(-4, 4, 50)[:, None]
    torch.testing.assert_close(
        objective(changed, goal), objective(logits, goal), rtol=1e-4, atol=1e-5
    )


def test_the_soft_margin_grows_with_the_logits_and_ignores_a_shift():
    logits, labels = several()
    changed = 7.5 * logits + torch.linspace(-4, 4, 50)[:, None]
    expected = 7.5 * SoftMargin()(logits, labels)
    torch.testing.assert_close(SoftMargin()(changed, labels), expected, rtol=1e-4, atol=1e-4)


def climbed(objective, logits, labels):
    """The gradient of an objective with respect to logits, of length 1."""
    logits = logits.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(objective(logits, labels).sum(), logits)
    return gradient / gradient.norm(dim=1, keepdim=True)


def test_the_soft_margin_lies_between_margin_and_cross_entropy():
    logits, labels = several()
    wrong = torch.ones_like(logits, dtype=torch.bool).scatter(1, labels[:, None], False)
    for n in range(len(logits)):
        z, y = logits[n : n + 1].double(), labels[n : n + 1]
        one = SoftMargin(1 / z[wrong[n : n + 1]].std(correction=0).item())  # T = 1
        torch.testing.assert_close(climbed(one, z, y), climbed(CrossEntropy(), z, y))
        hard = climbed(SoftMargin(1e-5), z, y)
        torch.testing.assert_close(hard, climbed(Margin(), z, y), rtol=0, atol=1e-6)
    assert (SoftMargin(0.5)(logits, labels) > Margin()(logits, labels)).all()


def test_the_soft_margin_of_two_classes_is_the_margin():
    logits, labels = several()
    two, first = logits[:, :2], labels % 2
    torch.testing.assert_close(SoftMargin()(two, first), Margin()(two, first))
    torch.testing.assert_close(climbed(SoftMargin(), two, first), climbed(Margin(), two, first))


def test_the_soft_margin_of_equal_or_excluded_classes_is_a_number():
    for wrong in ([1.0, 1.0, 1.0], [-torch.inf, 1.0, 0.0]):
        logits, label = torch.tensor([[2.0, *wrong]], requires_grad=True), torch.tensor([0])
        value = SoftMargin()(logits, label)
        torch.testing.assert_close(value, torch.tensor([-1.0]))
        assert torch.autograd.grad(value.sum(), logits)[0].isfinite().all()


def test_dlr_is_finite_where_all_logits_are_equal():
    assert DLR()(torch.zeros(1, 4), torch.tensor([0])).tolist() == [0]
    assert TargetedDLR()(torch.zeros(1, 4), torch.tensor([[0, 1]])).tolist() == [0]


@pytest.mark.parametrize("objective", [Margin(), DLR()], ids=["Margin", "DLR"])
def test_sign_says_misclassified(objective):
    logits, labels = several()
    wrong = logits.argmax(1) != labels
    assert 0 < wrong.sum() < 50
    assert torch.equal(objective(logits, labels) > 0, wrong)


def test_targeted_margin_is_positive_at_the_target():
    logits, labels = several()
    assert torch.equal(TargetedMargin()(logits, labels) > 0, logits.argmax(1) == labels)


def test_kl_is_zero_at_the_clean_image_and_positive_elsewhere(streams):
    logits, labels = several()
    objective = KLDivergence()
    goal = objective.aim(Fixed(logits), torch.zeros(50, 1, 1, 1), labels, streams(50))
    assert objective(logits, goal).abs().max() < 1e-6
    assert (objective(logits + several(seed=1)[0], goal) > 1e-4).all()


def test_kl_leaves_out_a_class_that_is_ruled_out(streams):
    """A logit of -inf: value and gradient are those without the class, to 1e-6."""
    clean, labels = several()
    other, objective = several(seed=1)[0], KLDivergence()
    results = []
    for classes in (5, 6):
        ruled_out = torch.full((50, classes - 5), -torch.inf)
        model = Fixed(torch.cat([clean, ruled_out], 1))
        goal = objective.aim(model, torch.zeros(50, 1, 1, 1), labels, streams(50))
        logits = other.clone().requires_grad_()
        loss = objective(torch.cat([logits, ruled_out], 1), goal)
        (slope,) = torch.autograd.grad(loss.sum(), logits)
        results.append((loss.detach(), slope))
    torch.testing.assert_close(results[1], results[0], rtol=0, atol=1e-6)


def test_away_from_prediction_needs_no_labels(streams):
    logits, labels = several()
    goal = AwayFromPrediction().aim(Fixed(logits), torch.zeros(50, 1, 1, 1), labels, streams(50))
    assert torch.equal(goal, logits.argmax(1))


def test_untargeted_objectives_aim_at_the_labels_and_do_not_ask(streams):
    labels = several()[1]
    for objective in (CrossEntropy(), Margin(), DLR()):
        assert not objective.asks
        assert torch.equal(
            objective.aim(nn.Identity(), torch.zeros(50, 1), labels, streams(50)), labels
        )


@pytest.mark.parametrize("choice", ["least_likely", "second", "random"])
@pytest.mark.parametrize("objective", [TargetedCrossEntropy, TargetedMargin, TargetedDLR])
def test_targets_are_those_asked_for_and_never_the_true_class(objective, choice, streams):
    logits, labels = several()
    labels[:10] = logits[:10].argmin(1)  # the true class is the least likely one
    labels[10:20] = logits[10:20].argmax(1)
    goal = objective(choice).aim(Fixed(logits), torch.zeros(50, 1, 1, 1), labels, streams(50))
    if objective is TargetedDLR:
        assert torch.equal(goal[:, 0], labels)
        goal = goal[:, 1]
    assert not (goal == labels).any()
    ranked = logits.argsort(dim=1).tolist()
    wrong = [
        [rank for rank in row if rank != label]
        for row, label in zip(ranked, labels.tolist(), strict=True)
    ]
    if choice == "random":
        assert len(set(goal.tolist())) == 5
    else:
        assert goal.tolist() == [row[0 if choice == "least_likely" else -1] for row in wrong]


def test_random_targets_are_uniform_among_wrong_classes(streams):
    labels = torch.full((4000,), 2)
    goal = choose_targets(
        torch.zeros(4000, 5), labels, Rng.for_images(0, torch.arange(4000)), "random"
    )
    counts = torch.bincount(goal, minlength=5)
    assert counts[2] == 0
    assert (counts[[0, 1, 3, 4]] - 1000).abs().max() < 5 * 750**0.5


def test_without_labels_the_least_likely_class_of_all_is_taken(streams):
    logits = several()[0]
    assert torch.equal(choose_targets(logits, None, streams(50), "least_likely"), logits.argmin(1))
    assert torch.equal(
        choose_targets(logits, None, streams(50), "second"), logits.topk(2).indices[:, 1]
    )
    assert not (choose_targets(logits, None, streams(50), "random") == logits.argmax(1)).any()


def test_an_unknown_target_is_named(streams):
    with pytest.raises(ValueError, match=r"^target = 'nearest'"):
        TargetedMargin("nearest").aim(
            Fixed(LOGITS), torch.zeros(1, 1, 1, 1), torch.tensor([0]), streams(1)
        )


def test_the_probability_of_being_wrong_has_a_gradient_where_the_model_is_sure():
    """1 - p_y is exp(-200), 0 in float32: computed from it, the loss would be infinite and its
    gradient NaN.
    """
    logits = torch.tensor([[200.0, 0.0, -1.0]], requires_grad=True)
    loss = WrongProbability()(logits, torch.tensor([0]))
    assert loss.item() == pytest.approx(math.log(1 + math.exp(-1)) - 200)
    (gradient,) = torch.autograd.grad(loss.sum(), logits)
    shares = torch.tensor([[-1.0, 1 / (1 + math.exp(-1)), 1 - 1 / (1 + math.exp(-1))]])
    torch.testing.assert_close(gradient, shares)


@pytest.mark.parametrize("objective", [CrossEntropy(), AwayFromPrediction()])
def test_cross_entropy_keeps_its_direction_however_sure_the_model_is(objective):
    """p_y - 1, as torch has it, is rounded, and zero once p_y rounds to 1."""
    logits, labels = several(200)
    odds = torch.linspace(-39, 30, 200)
    others = logits.scatter(1, labels[:, None], -torch.inf).logsumexp(dim=1)
    logits = logits.scatter(1, labels[:, None], (others - odds)[:, None]).requires_grad_()
    exact = logits.detach().double().requires_grad_()
    of_others = exact.scatter(1, labels[:, None], -torch.inf).logsumexp(dim=1)
    wanted = (of_others - exact.gather(1, labels[:, None]).squeeze(1)).exp().log1p()
    values = objective(logits, labels)
    torch.testing.assert_close(values.double(), wanted, rtol=1e-2, atol=0)
    (found,) = torch.autograd.grad(values.sum(), logits)
    (true,) = torch.autograd.grad(wanted.sum(), exact)
    length = true.norm(dim=1, keepdim=True)
    torch.testing.assert_close(found / length, true / length, rtol=0, atol=2e-2, check_dtype=False)
    (plain,) = torch.autograd.grad(F.cross_entropy(logits, labels, reduction="none").sum(), logits)
    assert ((plain / length - true / length).norm(dim=1) > 0.5).any()
    # Where nothing is lost, both are the same bit for bit.
    clear = odds > -11.9
    assert torch.equal(found[clear], plain[clear])


def test_kl_keeps_its_direction_however_sure_both_predictions_are():
    """q_y - p_y, as torch has it, is rounded, and zero once both are 1."""
    (clean, labels), away = several(200), several(200, seed=1)[0]
    odds = torch.linspace(-38, 10, 200)
    others = clean.scatter(1, labels[:, None], -torch.inf).logsumexp(dim=1)
    clean = clean.scatter(1, labels[:, None], (others - odds)[:, None])
    logits = (clean + away / 3).requires_grad_()
    p, exact = clean.double().softmax(1), logits.detach().double().requires_grad_()
    true = exact.softmax(1).detach() - p  # in which the likeliest class is that of all others
    true = true.scatter(1, labels[:, None], 0)
    true = true.scatter(1, labels[:, None], -true.sum(dim=1, keepdim=True))
    values = KLDivergence()(logits, clean.softmax(1))
    wanted = F.kl_div(exact.log_softmax(1), p, reduction="none").sum(1)
    torch.testing.assert_close(values.double(), wanted.detach(), rtol=1e-3, atol=1e-6)
    (found,) = torch.autograd.grad(values.sum(), logits)
    length = true.norm(dim=1, keepdim=True)
    assert ((found / length - true / length).norm(dim=1) < 0.05).all()
    plain = F.kl_div(logits.log_softmax(1), clean.softmax(1), reduction="none").sum()
    (plain,) = torch.autograd.grad(plain, logits)
    assert ((plain / length - true / length).norm(dim=1) > 0.5).any()
    clear = odds > -10
    assert torch.equal(found[clear], plain[clear])


@pytest.mark.parametrize("factor", [100.0, 1e4, 1e10])
def test_kl_leaves_a_clean_prediction_that_rounds_to_one_class(factor):
    logits = factor * torch.tensor([[12.0, 1.0, 0.0, -1.0]])
    goal, logits = logits.softmax(1), logits.requires_grad_()
    (found,) = torch.autograd.grad(KLDivergence()(logits, goal).sum(), logits)
    direction = torch.tensor([[-1.0, 1.0, 0.0, 0.0]]).double() / math.sqrt(2)
    torch.testing.assert_close(found.double() / found.double().norm(), direction)


@pytest.mark.parametrize("factor", [100.0, 1e4, 1e10, 1e30])
def test_cross_entropy_beyond_all_bounds_follows_the_log_odds(factor):
    logits, labels = several()
    logits = (factor * logits.scatter(1, labels[:, None], 12.0)).requires_grad_()
    (found,) = torch.autograd.grad(CrossEntropy()(logits, labels).sum(), logits)
    (odds,) = torch.autograd.grad(LogOdds()(logits, labels).sum(), logits)
    assert found.any(dim=1).all()
    torch.testing.assert_close(
        found / found.norm(dim=1, keepdim=True), odds / odds.norm(dim=1, keepdim=True)
    )
    # The surer, the less: attacks that compare losses can still tell.
    surer = logits.detach().scatter(1, labels[:, None], 13 * factor)
    assert (CrossEntropy()(surer, labels) < CrossEntropy()(logits, labels)).all()


@pytest.mark.parametrize("objective", [CrossEntropy(), WrongProbability(), LogOdds()])
def test_where_no_other_class_is_possible_the_derivative_is_a_number(objective):
    logits = torch.tensor([[5.0, -torch.inf, -torch.inf]], requires_grad=True)
    value = objective(logits, torch.tensor([0]))
    (gradient,) = torch.autograd.grad(value.sum(), logits)
    assert gradient.isfinite().all()
    assert not gradient[0, 1:].any()
    if isinstance(objective, CrossEntropy):
        assert value == 0
        assert not gradient.any()
