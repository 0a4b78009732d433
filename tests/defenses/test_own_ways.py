"""A defense of somebody's own: what it may do with its images, and what is refused in one line."""

import pytest
import torch
from torch import nn

import robusttrain
from robusttrain.attacks import IdentityBackward, Linf, ThroughDefense
from robusttrain.core.errors import UserError
from robusttrain.defenses import Chain, Defense, Vote
from robusttrain.models.defended import DefendedClassifier


class Rounds(Defense):
    """To eight levels, into the images or into a copy."""

    differentiable = False

    def __init__(self, inplace):
        super().__init__()
        self.inplace = inplace

    def transform(self, images, rng):
        images = images if self.inplace else images.clone()
        return images.mul_(7).round_().div_(7)


class Darkens(Defense):
    def transform(self, images, rng):
        images *= 0.9
        return images


class Forgets(Defense):
    def __init__(self):
        self.levels = 7

    def transform(self, images, rng):
        return images


class WithoutStreams(Defense):
    def transform(self, images):
        return images


class OwnStreams(nn.Module):
    """A classifier that takes streams, and writes into its images."""

    takes_rng = True

    def __init__(self, network):
        super().__init__()
        self.network = network

    def forward(self, images, rng):
        return self.network(images.sub_(0.5))


def test_a_defense_that_writes_into_its_images_leaves_the_attackers_points_alone(
    images, streams, linear
):
    """It rounded them: BPDA's steps were lost, and hardly an image fell."""
    x, linear = images(12), linear()
    y = DefendedClassifier(Rounds(False), linear)(x).argmax(dim=1)
    attack = robusttrain.attack("bpda-i", epsilon=0.1, steps=10)
    first, other = (
        attack(DefendedClassifier(Rounds(inplace), linear), x, y, streams(12))
        for inplace in (True, False)
    )
    assert torch.equal(first, other)
    assert not torch.equal(first, x)


def test_a_defense_that_writes_into_its_images_can_be_differentiated(images, streams, linear):
    x, before, linear = images(4), images(4).clone(), linear()
    y = linear(x).argmax(dim=1)
    attack = robusttrain.attack("pgd", epsilon=0.1, steps=3)
    found = attack(DefendedClassifier(Darkens(), linear), x, y, streams(4))
    assert ((found - x).abs() <= 0.1 + 1e-6).all()
    assert torch.equal(x, before)


def test_a_model_with_streams_may_write_into_its_images(images, linear):
    x, before = images(4), images(4).clone()
    DefendedClassifier(None, OwnStreams(linear()))(x)
    assert torch.equal(x, before)


@pytest.mark.parametrize(
    ("defense", "told"),
    [
        (Forgets, r"defense Forgets: call super\(\).__init__\(\) first"),
        (WithoutStreams, r"defense WithoutStreams: transform has to take images and rng"),
    ],
)
def test_what_cannot_work_is_refused_by_name(defense, told, images, linear):
    with pytest.raises(UserError, match=told):
        robusttrain.evaluate(
            linear(), images(4), torch.zeros(4).long(), defense=defense(), threat=Linf(0.1)
        )


class Noisy(Defense):
    random = True

    def transform(self, images, rng):
        return images + 0.1 * rng.normal(images.shape[1:])


class Asks(Defense):
    """Away from what the classifier says, in one step."""

    asks_classifier, differentiable = True, False

    def __init__(self, behind=()):
        super().__init__()
        self._behind = [*behind]

    def bound_to(self, behind):
        return self if self._behind else Asks([behind])

    def transform(self, images, rng):
        return images + 0.01 * self._behind[0](images).amax(1)[:, None, None, None].sign()


class Narrow(Chain):
    """A chain that clips what comes out of it."""

    def transform(self, images, rng):
        return super().transform(images, rng).clamp(0.4, 0.6)


class Turned(Vote):
    """A vote for the class that the draws find least likely."""

    def predict(self, classify, images, rng=None):
        return -super().predict(classify, images, rng)


class Mirrored(Defense):
    """The mean answer for an image and its mirror image, with no word about votes."""

    stepwise = True

    def transform(self, images, rng):
        return self.loop(lambda state, number, streams: state * 0.9, images, 2, rng)

    def predict(self, classify, images, rng=None):
        there = self(images, rng)
        return (classify(there, rng) + classify(there.flip(3), rng)) / 2


def test_what_a_subclass_of_a_chain_adds_is_part_of_the_target(images, streams, linear):
    """It was a plain chain as soon as a part of it asked the classifier."""
    target = DefendedClassifier(Narrow([Noisy(), Asks()]), linear())
    assert type(target.defense) is Narrow
    handed_on = target.defense(images(6), streams(6))
    assert handed_on.min() >= 0.4
    assert handed_on.max() <= 0.6


@pytest.mark.parametrize(
    ("defense", "source"),
    [
        (Narrow([Noisy(), Rounds(False)]), IdentityBackward()),
        (Turned(Chain([Noisy(), Rounds(False)]), draws=3), IdentityBackward()),
        (Mirrored(), ThroughDefense()),
    ],
)
def test_sources_answer_as_a_subclass_does(defense, source, images, streams, linear):
    target = DefendedClassifier(defense, linear()).eval()
    x, rng = images(6), streams(6)
    assert torch.allclose(source(target).eval()(x, rng), target(x, rng), atol=1e-6)


def test_a_chain_asks_a_part_that_predicts_in_its_own_way(images, streams, linear):
    """It passed over ``predict`` where the class did not say ``votes = True`` besides."""
    x, rng, linear = images(6), streams(6), linear()
    alone = DefendedClassifier(Mirrored(), linear)(x, rng)
    assert Mirrored.votes
    assert Chain([Mirrored()]).votes
    assert torch.allclose(DefendedClassifier(Chain([Mirrored()]), linear)(x, rng), alone)
    assert not torch.allclose(linear(Mirrored()(x)), alone)


def test_a_transform_that_nobody_would_ask_is_refused():
    class Clipped(Vote):
        def transform(self, images, rng):
            return super().transform(images, rng).clamp(0, 1)

    with pytest.raises(UserError, match="Clipped: where Vote votes it does not ask its own"):
        Clipped(Noisy())
    with pytest.raises(UserError, match="Narrow: where Chain votes"):
        Narrow([Vote(Noisy())])
