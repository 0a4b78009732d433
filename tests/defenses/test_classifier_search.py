"""Anti-adversary and hedge: known answers on linear models, and which classifier they ask."""

import copy

import pytest
import torch
from torch import nn

from robusttrain.attacks import FewerSteps, IdentityBackward, UnrolledTransform, prepared
from robusttrain.core.errors import OptionError, UserError
from robusttrain.defenses import (
    AntiAdversary,
    Chain,
    Defense,
    Hedge,
    MedianSmoothing,
    RandomResizePad,
)
from robusttrain.models.defended import DefendedClassifier


class Half(Defense):
    """g(x) = x / 2."""

    def transform(self, images, rng):
        return images / 2


def uphill(model, x):
    """sign(w_c - w_other) for the class c that a linear model of two classes predicts."""
    slope = (model.weight[0] - model.weight[1]).sign().view(1, *x.shape[1:])
    return torch.where(model(x).argmax(dim=1).view(-1, 1, 1, 1) == 0, slope, -slope).detach()


@pytest.fixture
def two(linear):
    return linear(classes=2)


@pytest.mark.parametrize(("steps", "size"), [(2, 0.15), (3, 0.02), (0, 0.1)])
def test_the_anti_adversary_of_a_linear_model(steps, size, two, images, streams):
    """K alpha along the sign of the weights, towards the predicted class: two classes leave one
    direction.
    """
    x = images(8)
    g = AntiAdversary(steps, size).bound_to(two)
    assert len(set(two(x).argmax(dim=1).tolist())) == 2
    torch.testing.assert_close(g(x, streams(8)), x + steps * size * uphill(two, x))


def test_the_anti_adversary_of_three_classes(linear, images, streams):
    """One step, with the gradient of log p_c by hand: w_c - sum_j p_j w_j."""
    model, x = linear(), images()
    logits = model(x)
    mean = logits.softmax(dim=1) @ model.weight
    step = 0.01 * (model.weight[logits.argmax(dim=1)] - mean).sign().view_as(x)
    torch.testing.assert_close(
        AntiAdversary(1, 0.01).bound_to(model)(x, streams()), (x + step).detach()
    )


@pytest.mark.parametrize("random_start", [True, False])
def test_the_hedge_of_a_linear_model(random_start, two, images, streams):
    """Away from both classes is away from the less likely one, to the corner of the ball."""
    x, corner = images(8), uphill(two, images(8))
    # No random start in the ball changes a prediction.
    assert torch.equal(two(x - 0.001 * corner).argmax(dim=1), two(x).argmax(dim=1))
    g = Hedge(radius=0.001, step_size=0.0004, random_start=random_start).bound_to(two)
    torch.testing.assert_close(g(x, streams(8)), x + 0.001 * corner)
    assert g.random == random_start


def test_the_hedge_of_three_classes(linear, images, streams):
    """One step: the gradient is K sum_j p_j w_j - sum_j w_j."""
    model, x = linear(), images()
    gradient = 3 * model(x).softmax(dim=1) @ model.weight - model.weight.sum(dim=0)
    g = Hedge(radius=0.05, steps=1, step_size=0.01, random_start=False).bound_to(model)
    torch.testing.assert_close(g(x, streams()), (x + 0.01 * gradient.sign().view_as(x)).detach())


def test_clipping(two, images, streams):
    x = images(8)
    assert AntiAdversary().bound_to(two)(x, streams(8)).max() > 1
    found = AntiAdversary(clip=True).bound_to(two)(x, streams(8))
    torch.testing.assert_close(found, (x + 0.3 * uphill(two, x)).clamp(0, 1))
    edges = x.round()
    assert Hedge().bound_to(two)(edges, streams(8)).max() <= 1
    assert Hedge(clip=False).bound_to(two)(edges, streams(8)).max() > 1


def test_more_steps_go_farther(two, images, streams):
    x = images(8)
    g = AntiAdversary(step_size=0.02).bound_to(two)
    torch.testing.assert_close(g.with_steps(5)(x, streams(8)), x + 0.1 * uphill(two, x))


def test_it_asks_the_classifier_that_it_stands_before(two, linear, images, streams):
    x = images()
    target = DefendedClassifier(AntiAdversary(), two)
    torch.testing.assert_close(target(x, streams()), two(x + 0.3 * uphill(two, x)))
    assert [*target.state_dict()] == ["classifier.weight", "classifier.bias"]
    assert not [*target.defense.parameters()]
    # One defense before two classifiers is two defenses; and it stays with the first one where an
    # attacker puts another in its place.
    g, other = AntiAdversary(), linear(classes=2, seed=5)
    DefendedClassifier(g, other)
    assert torch.equal(DefendedClassifier(g, two)(x, streams()), target(x, streams()))
    swapped = DefendedClassifier(target.defense, other)
    torch.testing.assert_close(swapped(x, streams()), other(x + 0.3 * uphill(two, x)))


def test_copies_ask_their_own_classifier(two, images, streams):
    x, target = images(), DefendedClassifier(AntiAdversary(), two)
    twin = copy.deepcopy(target)
    with torch.no_grad():
        twin.classifier.weight[:, :96].neg_()
    assert not torch.equal(uphill(twin.classifier, x), uphill(two, x))
    for each in (twin, target):
        torch.testing.assert_close(each.defense(x, streams()), x + 0.3 * uphill(each.classifier, x))


def test_alone_it_says_what_is_missing(images):
    with pytest.raises(UserError, match="AntiAdversary asks the classifier that it protects"):
        AntiAdversary()(images())
    with pytest.raises(UserError, match="Hedge asks"):
        Chain([MedianSmoothing(), Hedge()])(images())


def test_in_a_chain_it_asks_all_that_stands_behind_it(two, images, streams):
    """Twice the weights for half the image: the same direction, and half the size of the network's
    input.
    """
    x = images()
    chain = Chain([AntiAdversary(), Half()])
    target = DefendedClassifier(chain, two)

    def behind(points):
        return two(points / 2)

    slope = uphill(two, x)
    slope = torch.where((behind(x).argmax(1) == two(x).argmax(1)).view(-1, 1, 1, 1), slope, -slope)
    torch.testing.assert_close(target(x, streams()), behind(x + 0.3 * slope))
    assert chain.asks_classifier
    assert chain.searches
    assert not Chain([Half()]).asks_classifier
    # A part that changes the size may follow.
    padded = DefendedClassifier(Chain([AntiAdversary(), RandomResizePad(6, 8)]), copy.deepcopy(two))
    assert padded(x[..., :6, :6], streams()).shape == (4, 2)
    assert padded.defense.defenses[0].random


def test_two_in_a_chain(two, images, streams):
    """The first asks the second, which asks the classifier."""
    x = images()
    chain = Chain([Hedge(radius=0.01, random_start=False), AntiAdversary()])
    target = DefendedClassifier(chain, two)
    # The second makes the first certain of what is predicted; the derivative of the second is the
    # identity.
    torch.testing.assert_close(
        target(x, streams()), two(x + 0.31 * uphill(two, x)), rtol=1e-4, atol=1e-4
    )


def test_gradients_are_the_identitys(two, images, streams):
    x = images().requires_grad_()
    transformed = AntiAdversary().bound_to(two)(x, streams())
    (gradient,) = torch.autograd.grad(transformed.square().sum() / 2, x)
    torch.testing.assert_close(gradient, transformed.detach())
    with torch.inference_mode():
        assert torch.equal(AntiAdversary().bound_to(two)(images(), streams()), transformed)


def test_the_classifier_in_training_is_asked_in_evaluation_mode_and_left_alone(
    convnet, images, streams
):
    model, x = convnet(), images()
    quiet = DefendedClassifier(Hedge(steps=2), copy.deepcopy(model)).eval()
    target = DefendedClassifier(Hedge(steps=2), model).train()
    before = copy.deepcopy(model.state_dict())
    assert torch.equal(target.defense(x, streams()), quiet.defense(x, streams()))
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert model[1].training
    target(x, streams()).square().sum().backward()
    assert all(weight.grad is not None for weight in model.parameters())


def test_in_training_it_follows_the_weights(two, images, streams):
    target, x = DefendedClassifier(AntiAdversary(), two).train(), images()
    first = target.defense(x, streams())
    with torch.no_grad():
        two.weight[:, :96].neg_()
    assert not torch.equal(target.defense(x, streams()), first)


@pytest.mark.parametrize("g", [AntiAdversary(), Hedge(steps=3)], ids=["anti", "hedge"])
def test_sources_for_searches_take_it(g, curved, images, streams):
    """Fewer steps forward, unrolled steps backward: forward is g as it is."""
    target, x = DefendedClassifier(g, curved()), images()
    assert g.gradients == g.attack.steps
    whole, few = target(x, streams()), FewerSteps(1)(target)
    assert not torch.equal(few(x, streams()), whole)
    for source in (IdentityBackward(), UnrolledTransform("softsign")):
        model = source(target)
        with prepared(model):
            points = x.clone().requires_grad_()
            logits = model(points, streams())
            (gradient,) = torch.autograd.grad(logits[:, 0].sum(), points)
        torch.testing.assert_close(logits.detach(), whole.detach())
        assert (gradient != 0).flatten(1).any(dim=1).all()


def test_a_classifier_that_draws_is_asked_with_streams_of_the_image(random_linear, images, streams):
    target = DefendedClassifier(AntiAdversary(), random_linear())
    assert target.defense.random
    x, rng = images(), streams()
    whole = target.defense(x, rng)
    assert torch.equal(target.defense(x, rng), whole)
    torch.testing.assert_close(target.defense(x[[2, 0]], rng[torch.tensor([2, 0])]), whole[[2, 0]])


@pytest.mark.parametrize(
    ("make", "option"),
    [
        (lambda: AntiAdversary(steps=-1), "steps"),
        (lambda: AntiAdversary(step_size=0), "step_size"),
        (lambda: Hedge(radius=-0.1), "radius"),
        (lambda: Hedge(step_size=0), "step_size"),
    ],
)
def test_impossible_options_are_named(make, option):
    with pytest.raises(OptionError, match=rf"^{option} = "):
        make()


def test_a_function_will_do(two, images, streams):
    x = images()
    found = DefendedClassifier(AntiAdversary(), lambda images: two(images))
    torch.testing.assert_close(found(x, streams()), two(x + 0.3 * uphill(two, x)))
    assert isinstance(found.classifier, nn.Module)
