"""A defense of somebody's own: what it may do with its images, and what is refused in one line."""

import pytest
import torch
from torch import nn

import robusttrain
from robusttrain.attacks import Linf
from robusttrain.core.errors import UserError
from robusttrain.defenses import Defense
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
