"""Sources: what the attacker differentiates, exactly."""

import pytest
import torch

from robusttrain.attacks import (
    ClassifierOnly,
    CrossEntropy,
    EnsemblePattern,
    FewerSteps,
    IdentityBackward,
    ProjectedGradient,
    SinglePattern,
    Target,
    UnrolledTransform,
    call_model,
)
from robusttrain.core.errors import UserError
from robusttrain.defenses import (
    AdversarialTransform,
    Chain,
    Defense,
    FixedResizePad,
    RandomResizePad,
)
from robusttrain.models.defended import DefendedClassifier


class Half(Defense):
    """g(x) = x / 2: its true derivative is a half."""

    def transform(self, images, rng):
        return images / 2


class Threshold(Defense):
    """No gradient at all: rounds to a few grey levels, behind noise."""

    random, differentiable = True, False

    def transform(self, images, rng):
        return ((images + rng.uniform(images.shape[1:], -0.1, 0.1)) * 4).round() / 4


def gradient(model, images, rng):
    x = images.clone().requires_grad_()
    logits = call_model(model, x, rng)
    (found,) = torch.autograd.grad(CrossEntropy()(logits, torch.arange(4) % 3).sum(), x)
    return logits.detach(), found


def test_target_is_the_target(curved):
    target = DefendedClassifier(Half(), curved())
    assert Target()(target) is target
    bare = DefendedClassifier(None, curved())
    assert Target()(bare) is bare


def test_classifier_only_is_the_classifier(curved, images, streams):
    target = DefendedClassifier(Half(), curved())
    x = images()
    source = ClassifierOnly()(target)
    assert torch.equal(source(x), target.classifier(x))
    assert torch.equal(source.transform(x, streams()), target.defense(x, streams()))


@pytest.mark.parametrize("kind", ["half", "threshold", "transform", "chain"])
def test_identity_backward_is_exact_forward_and_the_classifiers_gradient_at_g_backward(
    kind, curved, images, streams
):
    defense = {
        "half": Half,
        "threshold": Threshold,
        "transform": lambda: AdversarialTransform(curved(seed=1)),
        "chain": lambda: Chain([Threshold(), AdversarialTransform(curved(seed=1))]),
    }[kind]()
    target = DefendedClassifier(defense, curved())
    source = IdentityBackward()(target)
    logits, found = gradient(source, images(), streams())
    assert torch.equal(logits, target(images(), streams()))
    transformed = defense(images(), streams())
    expected = gradient(target.classifier, transformed, streams())[1]
    assert torch.equal(found, expected)
    if kind == "half":  # the truth is half of it
        torch.testing.assert_close(gradient(target, images(), streams())[1], found / 2)


def test_identity_backward_without_streams_follows_the_global_seed(curved, images):
    source, results = IdentityBackward()(DefendedClassifier(Threshold(), curved())), []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        results.append(source(images()))
    assert torch.equal(results[0], results[1])
    assert not torch.equal(results[0], results[2])


def test_bpda_breaks_a_threshold_that_stops_gradients(curved, images, streams):
    target = DefendedClassifier(Threshold(), curved())
    x, clean = images(), target(images(), streams())
    labels = clean.argmax(1)
    attack = ProjectedGradient(10, relative_step_size=0.3, random_start=False)
    # Rounding has the gradient zero everywhere
    assert torch.equal(attack(target, x, labels, streams()), x)
    moved = attack(IdentityBackward()(target), x, labels, streams())
    loss = CrossEntropy()
    assert (loss(target(moved, streams()), labels) > loss(clean, labels)).float().mean() > 0.7


def test_the_transformations_own_derivative_is_bpda_i(curved, images, streams):
    """AdversarialTransform differentiates as the identity, so Target and IdentityBackward are one
    attack on it.
    """
    target = DefendedClassifier(AdversarialTransform(curved(seed=1)), curved())
    for one, other in zip(
        gradient(target, images(), streams()),
        gradient(IdentityBackward()(target), images(), streams()),
        strict=True,
    ):
        assert torch.equal(one, other)


def test_identity_backward_refuses_a_defense_that_changes_the_size(convnet, images, streams):
    source = IdentityBackward()(DefendedClassifier(RandomResizePad(8, 10), convnet()))
    with pytest.raises(UserError, match=r"IdentityBackward.*\(3, 8, 8\).*\(3, 10, 10\)") as caught:
        source(images(), streams())
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "source", [ClassifierOnly(), IdentityBackward()], ids=["ClassifierOnly", "IdentityBackward"]
)
def test_without_a_defense_there_is_nothing_to_go_around(source, curved):
    for target in (DefendedClassifier(None, curved()), curved()):
        with pytest.raises(UserError, match=f"{type(source).__name__}.*no defense") as caught:
            source(target)
        assert "\n" not in str(caught.value)


def test_sources_say_what_the_attacker_knows():
    assert ClassifierOnly().knows == "classifier"
    assert {Target().knows, IdentityBackward().knows} == {"classifier, defense"}


def test_in_a_chain_only_what_has_no_derivative_is_taken_for_the_identity(curved, images, streams):
    """Half of the gradient at g(x) / 2: the part that halves is differentiated as it is."""
    target = DefendedClassifier(Chain([Half(), Threshold()]), curved())
    logits, found = gradient(IdentityBackward()(target), images(), streams())
    assert torch.equal(logits, target(images(), streams()))
    transformed = target.defense(images(), streams())
    expected = gradient(target.classifier, transformed, streams())[1] / 2
    torch.testing.assert_close(found, expected)


def test_sources_reach_g_inside_a_chain(convnet, images, streams):
    """Unrolled, shortened and fixed patterns, each against the chain put together by hand."""
    g = AdversarialTransform(convnet(seed=1), radius=0.05, steps=3)
    layers, model = RandomResizePad(8, 12), convnet()
    target, x, rng = DefendedClassifier(Chain([layers, g]), model), images(), streams
    logits, found = gradient(UnrolledTransform("automatic")(target), x, rng())
    assert torch.equal(logits, target(x, rng()))
    expected = gradient(target, x, rng())[1]  # automatic differentiation is the identity in g
    torch.testing.assert_close(found, expected)

    shorter = DefendedClassifier(Chain([layers, g.with_steps(1)]), model)
    assert torch.equal(FewerSteps(1, Target())(target)(x, rng()), shorter(x, rng()))
    single = DefendedClassifier(Chain([FixedResizePad(12, 9, "center"), g]), model)
    assert torch.equal(SinglePattern(9)(target)(x, rng()), single(x, rng()))
    assert len(EnsemblePattern(1, ["center"])(target).members) == 2
    twice = DefendedClassifier(Chain([layers, RandomResizePad(12, 14)]), model)
    with pytest.raises(UserError, match="SinglePattern: 2 parts of the defense draw patterns"):
        SinglePattern()(twice)
