"""Estimators that were made for random models without gradients: finite differences and the mean
prediction.
"""

import math

import pytest
import torch
import torch.nn.functional as F

from robusttrain.attacks import (
    DLR,
    L2,
    Average,
    AverageLogits,
    Backprop,
    ClassifierOnly,
    CrossEntropy,
    Diverse,
    FiniteDifference,
    Linf,
    Loss,
    Margin,
    MeanStart,
    Normalized,
    ProjectedGradient,
    TargetedCrossEntropy,
    mean_transform,
)
from robusttrain.core.errors import OptionError, UserError
from robusttrain.defenses import AdversarialTransform, Defense
from robusttrain.models.defended import DefendedClassifier


def loss_of(model, labels, objective=None):
    return Loss(model, objective or CrossEntropy(), labels)


LABELS = torch.tensor([0, 1, 2, 0])


def test_all_pixels_of_equation_4_give_the_gradient(curved, images, streams):
    model, x = curved().double(), images(side=4).double()
    model.first.data = model.first.data[:, :48]
    loss_fn = loss_of(model, LABELS)
    loss, found = FiniteDifference(48, size=1e-5, along="pixels")(loss_fn, x, streams())
    expected_loss, expected = Backprop()(loss_fn, x, streams())
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-8)
    torch.testing.assert_close(loss, expected_loss, rtol=1e-4, atol=1e-6)
    # As many as there are pixels, also if more are asked for.
    assert torch.equal(
        FiniteDifference(1000, size=1e-5, along="pixels")(loss_fn, x, streams())[1], found
    )


def test_some_pixels_of_equation_4_are_those_entries_of_the_gradient(curved, images, streams):
    model, x = curved().double(), images().double()
    loss_fn = loss_of(model, LABELS)
    _, found = FiniteDifference(20, size=1e-5, along="pixels")(loss_fn, x, streams())
    _, expected = Backprop()(loss_fn, x, streams())
    assert (found != 0).flatten(1).sum(1).tolist() == [20] * 4
    torch.testing.assert_close(found, torch.where(found != 0, expected, 0), rtol=1e-5, atol=1e-7)
    assert not torch.equal(found[0] != 0, found[1] != 0)  # each image its own pixels


@pytest.mark.parametrize("batch", [1, 4, 64])
def test_random_directions_point_along_the_gradient_whatever_the_batch(
    linear, images, streams, batch
):
    """Losses stay per image: summed over the batch, the cosine would fall with its size."""
    model = linear()
    loss_fn = loss_of(model, torch.arange(batch) % 3)
    _, found = FiniteDifference(2000, size=0.01, chunk=50)(loss_fn, images(batch), streams(batch))
    _, expected = Backprop()(loss_fn, images(batch), streams(batch))
    cosine = F.cosine_similarity(found.flatten(1), expected.flatten(1))
    # n directions in d dimensions: n / (n + d - 1) of the squared length is signal.
    assert cosine.mean() == pytest.approx((2000 / (2000 + 191)) ** 0.5, abs=0.02)
    assert cosine.min() > 0.9


def test_directions_do_not_depend_on_chunks_and_both_ends_share_a_draw(
    random_linear, images, streams
):
    loss_fn = loss_of(random_linear().double(), LABELS, Margin())
    x = images().double()  # in float32 the rounding of a margin, divided by h, would show
    found = [FiniteDifference(12, chunk=chunk)(loss_fn, x, streams())[1] for chunk in (1, 5, None)]
    for other in found[1:]:
        torch.testing.assert_close(found[0], other, rtol=1.3e-6, atol=1e-5)
    # The margin of a linear model is linear: with one draw for both ends, h does not matter.
    again = FiniteDifference(12, size=0.002)(loss_fn, x, streams())[1]
    torch.testing.assert_close(found[0], again, rtol=1e-3, atol=1e-2)


def test_finite_differences_break_a_defense_that_hides_its_gradient(linear, images, streams):
    class Hidden(Defense):
        def transform(self, images, rng):
            return images.detach()

    target = DefendedClassifier(Hidden(), linear())
    x = images()
    labels = target(x).argmax(1)
    best = target.classifier.weight
    attack = ProjectedGradient(
        20,
        0.02,
        threat=Linf(0.1),
        objective=Margin(),
        gradient=FiniteDifference(200),
        random_start=False,
    )
    adversarial = attack(target, x, labels, streams())
    margin = Margin()(target(adversarial), labels)
    # In closed form: no change of at most epsilon raises the margin to class j by more than epsilon
    # |w_j - w_y|_1.
    gaps = Margin()(target(x), labels)
    bound = gaps + 0.1 * (best[None] - best[labels][:, None]).abs().sum(2).amax(1)
    assert (margin > gaps + 0.8 * (bound - gaps)).all()


def test_costs_are_counted(curved, counting, images, streams):
    for gradient in (
        FiniteDifference(7),
        AverageLogits(5),
        Average(3, FiniteDifference(4)),
        AverageLogits(5, chunk=2),
    ):
        model = counting(curved())
        attack = ProjectedGradient(2, 0.01, gradient=gradient)
        attack(model, images(), LABELS, streams())
        assert (model.gradients, model.queries) == (
            4 * attack.cost().gradients,
            4 * attack.cost().queries,
        )


@pytest.mark.parametrize("objective", [CrossEntropy(), Margin(), DLR()])
@pytest.mark.parametrize("chunk", [1, 3, None])
def test_average_logits_is_the_gradient_of_the_mean_prediction(
    random_linear, images, streams, objective, chunk
):
    model, rng = random_linear(), streams()
    loss_fn = loss_of(model, LABELS, objective)
    loss, found = AverageLogits(7, chunk)(loss_fn, images(), rng)
    x = images().requires_grad_()
    mean = torch.stack([model(x, rng.fold(draw)).softmax(1) for draw in range(7)]).mean(0)
    expected_loss = objective(mean.log(), LABELS)
    (expected,) = torch.autograd.grad(expected_loss.sum(), x)
    torch.testing.assert_close(loss, expected_loss)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-6)
    mean_gradient = Average(7)(loss_fn, images(), rng)[1]
    assert (found - mean_gradient).abs().max() > 1e-3  # EOT is another direction


class Told(torch.nn.Module):
    """A random model that is this function of images and streams."""

    takes_rng = random = True

    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, images, rng):
        return self.function(images, rng)


@pytest.mark.parametrize("objective", [Margin(), DLR()])
def test_average_logits_of_a_sure_model_has_a_gradient(random_linear, images, streams, objective):
    """Logits x 1000: probabilities of wrong classes round to 0 in float32. The expected gradient is
    that of the log of the mean prediction in float64, from logarithms; directions agree to 1e-3.
    """
    model, rng = random_linear(), streams()
    x = images().requires_grad_()
    draws = [1000 * model(x, rng.fold(draw)).double() for draw in range(7)]
    mean = torch.stack([draw.log_softmax(1) for draw in draws]).logsumexp(0) - math.log(7)
    assert (mean.detach().float().exp() == 0).any(1).tolist() == [True, True, False, True]
    labels = mean.argmax(1)
    expected_loss = objective(mean, labels)
    (expected,) = torch.autograd.grad(expected_loss.sum(), x)
    sure = Told(lambda points, streams: 1000 * model(points, streams))
    loss, found = AverageLogits(7, 3)(loss_of(sure, labels, objective), images(), rng)
    torch.testing.assert_close(loss.double(), expected_loss.detach(), rtol=1e-4, atol=1e-4)
    cosine = F.cosine_similarity(found.flatten(1), expected.flatten(1))
    assert (cosine > 1 - 1e-3).all()
    length = found.flatten(1).norm(dim=1) / expected.flatten(1).norm(dim=1)
    torch.testing.assert_close(length, torch.ones_like(length), rtol=1e-3, atol=0)


def test_average_logits_leaves_out_a_class_that_is_ruled_out(random_linear, images, streams):
    """By a logit of -inf in every draw: loss and gradient are those without it."""
    model, rng = random_linear(), streams()
    plain, ruled_out = (
        Told(lambda x, streams, k=k: F.pad(model(x, streams), (0, k), value=-torch.inf))
        for k in (0, 1)
    )
    loss, found = AverageLogits(5)(loss_of(plain, LABELS), images(), rng)
    other_loss, other = AverageLogits(5)(loss_of(ruled_out, LABELS), images(), rng)
    torch.testing.assert_close(other_loss, loss)
    torch.testing.assert_close(other, found)


def test_average_logits_must_see_the_model(random_linear, images, streams):
    for outer in (Diverse(inner=AverageLogits()), Average(3, AverageLogits())):
        attack = ProjectedGradient(1, 0.01, gradient=outer)
        with pytest.raises(UserError, match="cannot stand inside another estimator"):
            attack(random_linear(), images(), LABELS, streams())


@pytest.mark.parametrize(
    ("part", "options", "named"),
    [
        (FiniteDifference, {"directions": 0}, "directions"),
        (FiniteDifference, {"size": 0}, "size"),
        (FiniteDifference, {"along": "rows"}, "along"),
        (FiniteDifference, {"chunk": 0}, "chunk"),
        (AverageLogits, {"draws": 0}, "draws"),
        (AverageLogits, {"chunk": 0}, "chunk"),
        (MeanStart, {"draws": 0, "step_size": 0.1}, "draws"),
        (MeanStart, {"around": 0.0, "step_size": 0.1}, "around"),
        (MeanStart, {"steps": -1, "step_size": 0.1}, "steps"),
        (MeanStart, {"step_size": 0.1, "relative_step_size": 0.1}, "step_size"),
    ],
)
def test_bad_options_are_named(part, options, named):
    with pytest.raises(OptionError, match=named):
        part(**options)


def transformed(curved, **options):
    return DefendedClassifier(AdversarialTransform(curved(seed=1), steps=3, **options), curved())


def test_mean_transform_is_the_mean_over_draws(curved, images, streams):
    g = transformed(curved).defense
    found = mean_transform(g, images(), streams(), 5)
    expected = torch.stack([g(images(), streams().fold(draw)) for draw in range(5)]).mean(0)
    torch.testing.assert_close(found, expected)


def test_mean_start_begins_at_the_mean_projected_into_the_threat(curved, images, streams):
    target, x = transformed(curved), images()
    source, threat = ClassifierOnly()(target), Linf(0.05)
    start = MeanStart(5, steps=0, step_size=0.01, threat=threat)(source, x, LABELS, streams())
    mean = mean_transform(target.defense, x, streams().fold("mean"), 5)
    assert torch.equal(start, threat.project(mean, x))
    assert threat.distance(start, x).min() > 0.049
    found = MeanStart(5, steps=10, step_size=0.01, threat=threat)(source, x, LABELS, streams())
    expected = ProjectedGradient(10, 0.01, threat=threat).climb(source, start, x, LABELS, streams())
    assert torch.equal(found, expected)
    assert (F.cross_entropy(source(found), LABELS) > F.cross_entropy(source(start), LABELS)).all()


def test_mean_start_as_the_paper_runs_it_leaves_the_ball(curved, images, streams):
    target, x = transformed(curved), images()
    source = ClassifierOnly()(target)
    free = MeanStart(5, around=0.05, steps=10, step_size=0.01, threat=Linf(0.3))(
        source, x, LABELS, streams()
    )
    mean = mean_transform(target.defense, x, streams().fold("mean"), 5).clamp(0, 1)
    assert Linf(0.05).distance(free, mean).max() <= 0.05 + 1e-6
    assert Linf(0.05).distance(free, x).min() > 0.05
    held = MeanStart(5, around=0.05, steps=10, step_size=0.01, threat=Linf(0.1))(
        source, x, LABELS, streams()
    )
    assert Linf(0.1).distance(held, x).max() <= 0.1 + 1e-6


class Inverted(Defense):
    """g(x) = 1 - x: the least likely class of a linear model becomes the likeliest."""

    def transform(self, images, rng):
        return 1 - images


def test_mean_start_around_the_mean_aims_at_what_the_clean_image_says(linear, images, streams):
    model, x = linear(), images()
    source = ClassifierOnly()(DefendedClassifier(Inverted(), model))
    attack = MeanStart(
        *(2, 0.2, 20, 0.05), threat=Linf(1.0), objective=TargetedCrossEntropy("least_likely")
    )
    labels = model(x).argmax(1)
    goals = attack.goals(source, x, labels, streams())
    assert torch.equal(goals, model(x).argmin(1))
    centre, found = 1 - x, attack(source, x, labels, streams())
    before, after = (
        -F.cross_entropy(model(each), goals, reduction="none") for each in (centre, found)
    )
    assert (after > before).all()


def test_mean_start_around_the_mean_runs_in_a_threat_of_another_norm(curved, images, streams):
    """It climbs by signs in the Linf ball, by the same share of its radius as of the threat's."""
    target, x = transformed(curved), images()
    source = ClassifierOnly()(target)
    in_l2 = MeanStart(5, around=0.05, steps=10, step_size=4.0, threat=L2(20.0), rule=Normalized())
    # Both threats are too wide to matter.
    in_linf = MeanStart(5, around=0.05, steps=10, step_size=0.01, threat=Linf(1.0))
    found, expected = (attack(source, x, LABELS, streams()) for attack in (in_l2, in_linf))
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)
    assert (found - x).abs().max() > 0.05


def test_mean_start_needs_a_g(curved, images, streams):
    with pytest.raises(UserError, match="no g to start from"):
        MeanStart(5, step_size=0.01)(curved(), images(), LABELS, streams())
