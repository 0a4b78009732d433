"""Forward through the true defense, backward through another function: one draw, and votes."""

import pytest
import torch

from robusttrain.attacks import IdentityBackward, StandIn, ThroughDefense
from robusttrain.core.errors import UserError
from robusttrain.core.rng import Rng
from robusttrain.defenses import Chain, CropRescale, Defense, MedianSmoothing, RandomResizePad, Vote
from robusttrain.models.defended import DefendedClassifier

LAYERS = {"low": 6, "canvas": 8}
DEFENSES = {
    "one draw": lambda: CropRescale(0.5),
    "a chain": lambda: Chain([MedianSmoothing(), CropRescale(0.5)]),
    "a vote": lambda: Vote(CropRescale(0.5), 3),
    "a vote in a chain": lambda: Chain([Vote(CropRescale(0.5), 3), MedianSmoothing()]),
}


def halved(images):
    return images / 2


def answers(model, images, rng):
    x = images.clone().requires_grad_()
    logits = model(x, rng)
    (gradient,) = torch.autograd.grad(logits.logsumexp(dim=1).sum() + logits[:, 0].sum(), x)
    return logits.detach(), gradient


@pytest.mark.parametrize("name", DEFENSES)
def test_a_stand_in_for_the_backward_pass_answers_as_the_target(name, linear, images):
    target = DefendedClassifier(DEFENSES[name](), linear()).eval()
    pictures, rng = images(4), Rng.for_images(0, torch.arange(4))
    network = torch.nn.Module()
    network.forward = halved
    source = StandIn(network, forward="g")
    expected = target(pictures, rng).detach()
    logits, gradient = answers(source(target), pictures, rng)
    torch.testing.assert_close(logits, expected)
    assert torch.equal(source(target)(pictures, rng), expected)  # without a gradient, too
    # h is x / 2, so its derivative is half of the identity's.
    same, whole = answers(IdentityBackward()(target), pictures, rng)
    torch.testing.assert_close(same, expected)
    torch.testing.assert_close(gradient, whole / 2)
    assert source.same_forward
    assert not StandIn(network).same_forward


class Twice(Defense):
    """A vote of its own, over two versions of the image."""

    votes = True

    def transform(self, images, rng):
        return images

    def predict(self, classify, images, rng=None):
        return (classify(images, rng) + classify(images.flip(3), rng)) / 2


@pytest.mark.filterwarnings("ignore:source ThroughDefense")
@pytest.mark.parametrize("name", ["of its own", "identity"])
def test_going_through_a_defense_keeps_its_votes(name, linear, images):
    defense = Twice() if name == "of its own" else Vote(CropRescale(0.5), 3)
    source = ThroughDefense() if name == "of its own" else ThroughDefense(inner=IdentityBackward())
    target = DefendedClassifier(defense, linear()).eval()
    pictures, rng = images(4), Rng.for_images(0, torch.arange(4))
    torch.testing.assert_close(source(target)(pictures, rng), target(pictures, rng))


def test_an_h_of_another_size_is_refused(linear, images):
    network = torch.nn.Module()
    network.forward = lambda images: images[..., ::2]
    model = StandIn(network, forward="g")(DefendedClassifier(CropRescale(0.5), linear()))
    with pytest.raises(UserError, match="h turns images into"):
        model(images(2).requires_grad_(), Rng.for_images(0, torch.arange(2)))
    with pytest.raises(UserError, match="source StandIn: the target has no defense"):
        StandIn(network)(DefendedClassifier(None, linear()))


def test_a_crop_of_the_whole_image_draws_nothing():
    assert CropRescale(0.5).random
    assert not CropRescale(1.0).random


def test_a_vote_shows_the_steps_of_what_it_votes_on():
    class Steps(Defense):
        random = stepwise = True

        def transform(self, images, rng):
            return images

    assert Vote(Steps(), 2).stepwise
    assert Chain([Vote(Steps(), 2), MedianSmoothing()]).stepwise
    assert not Vote(RandomResizePad(**LAYERS), 2).stepwise
