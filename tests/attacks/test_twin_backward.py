"""Backward through a differentiable twin: the forward pass is g's, the gradient the twin's."""

import pytest
import torch

from robusttrain.attacks import IdentityBackward, ProjectedGradient, TwinBackward
from robusttrain.core.errors import UserError
from robusttrain.defenses import JPEG, BitDepth, Chain, Defense, MedianSmoothing, Vote
from robusttrain.models.defended import DefendedClassifier


class Scaled(Defense):
    """g(x) = (x + noise) / 4."""

    random = True

    def transform(self, images, rng):
        return (images + rng.uniform(images.shape[1:], -0.1, 0.1)) / 4


class Stepped(Defense):
    """The same, rounded."""

    random, differentiable = True, False

    def twin(self):
        return Scaled()

    def transform(self, images, rng):
        return (Scaled().transform(images, rng) * 32).round() / 32


def gradient(model, x, rng):
    points = x.clone().requires_grad_()
    logits = model(points, rng)
    (slope,) = torch.autograd.grad(logits[:, 0].sum(), points)
    return logits.detach(), slope


@pytest.mark.parametrize("kind", ["jpeg", "stepped", "chain", "vote"])
def test_the_value_is_the_targets(kind, convnet, images, streams):
    defense = {
        "jpeg": JPEG,
        "stepped": Stepped,
        "chain": lambda: Chain([BitDepth(4), JPEG(), MedianSmoothing()]),
        "vote": lambda: Vote(Stepped(), 3),
    }[kind]()
    target = DefendedClassifier(defense, convnet()).eval()
    source = TwinBackward()(target).eval()
    assert torch.equal(source(images(), streams()), target(images(), streams()))
    assert torch.equal(gradient(source, images(), streams())[0], target(images(), streams()))


def test_the_gradient_is_the_twins_at_the_same_draw(linear, images, streams):
    """Of a linear model, it does not depend on where g lies."""
    model, x = linear(), images()
    source = TwinBackward()(DefendedClassifier(Stepped(), model))
    found = gradient(source, x, streams())[1]
    torch.testing.assert_close(
        found, gradient(DefendedClassifier(Scaled(), model), x, streams())[1]
    )
    identity = gradient(IdentityBackward()(DefendedClassifier(Stepped(), model)), x, streams())[1]
    torch.testing.assert_close(identity, 4 * found)


def test_for_jpeg_it_is_the_differentiable_jpegs(linear, images, streams):
    model, x = linear(), images()
    source = TwinBackward()(DefendedClassifier(JPEG(50), model))
    twin = DefendedClassifier(JPEG(50).twin(), model)
    torch.testing.assert_close(gradient(source, x, streams())[1], gradient(twin, x, streams())[1])


def test_in_a_chain_the_rest_is_as_for_the_identity(linear, images, streams):
    """Rounding counts as the identity, and the median is differentiated as it is."""
    x, model = images(), linear()
    chain = Chain([MedianSmoothing(), BitDepth(4), Stepped()])
    found = gradient(TwinBackward()(DefendedClassifier(chain, model)), x, streams())[1]
    expected = gradient(DefendedClassifier(MedianSmoothing(), model), x, streams())[1] / 4
    torch.testing.assert_close(found, expected)


def test_an_attack_climbs_through_it(curved, images, streams):
    target = DefendedClassifier(JPEG(30), curved())
    x = images()
    labels = target(x).argmax(dim=1)
    attack = ProjectedGradient(10, relative_step_size=0.3, random_start=False)
    moved = attack(TwinBackward()(target), x, labels, streams())
    before, after = (torch.nn.functional.cross_entropy(target(each), labels) for each in (x, moved))
    assert after > before + 0.1


def test_without_a_twin_the_error_names_another_attack(convnet):
    for defense, instead in ((MedianSmoothing(), "pgd"), (BitDepth(), "bpda-i")):
        with pytest.raises(UserError, match=f"no differentiable twin: --attack {instead}"):
            TwinBackward()(DefendedClassifier(defense, convnet()))
    with pytest.raises(UserError, match="TwinBackward: the target has no defense"):
        TwinBackward()(DefendedClassifier(None, convnet()))


def test_a_twin_of_another_size_is_refused(convnet, images, streams):
    class Smaller(Scaled):
        def transform(self, images, rng):
            return super().transform(images, rng)[..., 1:, 1:]

    class Wrong(Stepped):
        def twin(self):
            return Smaller()

    source = TwinBackward()(DefendedClassifier(Wrong(), convnet()))
    with pytest.raises(UserError, match=r"Wrong gives images of \(3, 8, 8\), and its twin"):
        gradient(source, images(), streams())
