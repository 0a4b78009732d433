"""Exact gradients through a defense: the same as the plain ones, bit for bit, with fewer tensors
kept; random steps repeat their numbers on the way back.
"""

import pytest
import torch
from torch import nn

from robusttrain.attacks import (
    Average,
    ClassifierOnly,
    IdentityBackward,
    Linf,
    ProjectedGradient,
    Queried,
    Target,
    ThroughDefense,
    UnrolledTransform,
)
from robusttrain.core.errors import UserError
from robusttrain.core.rng import Rng
from robusttrain.defenses import AdversarialTransform, Chain, Defense, RandomResizePad
from robusttrain.models.defended import DefendedClassifier


class Purifier(Defense):
    """A random loop of small networks, each step with noise of its own."""

    random = stepwise = True

    def __init__(self, steps=6, shown=True):
        super().__init__()
        self.steps, self.stepwise = steps, shown
        torch.manual_seed(0)
        self.network = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.Tanh(), nn.Conv2d(4, 3, 1))

    def transform(self, images, rng):
        def step(state, number, streams):
            noise = 0.05 * streams.normal(images.shape[1:]).to(state)
            return state + 0.1 * self.network(state + noise)

        if self.stepwise:
            return self.loop(step, images, self.steps, rng)
        for number in range(self.steps):
            images = step(images, number, rng.fold(number))
        return images


class Sloppy(Defense):
    """Draws in its steps from the caller's stream and from torch's global generator."""

    random = stepwise = True

    def transform(self, images, rng):
        def step(state, number, streams):
            return state * (1 + 0.1 * rng.normal(images.shape[1:])) * (1 + 0.1 * torch.rand(1))

        return self.loop(step, images, 3, rng)


DEFENSES = {
    "purifier": Purifier,
    "purifier that shows no steps": lambda: Purifier(shown=False),
    "streams of the caller and global ones": Sloppy,
    "randomization": lambda: RandomResizePad(low=8, canvas=10),
    "chain": lambda: Chain([Purifier(3), Purifier(4)]),
}


def gradient(model, images, rng):
    torch.manual_seed(5)
    x = images.clone().requires_grad_()
    logits = model(x, rng)
    (found,) = torch.autograd.grad(logits.logsumexp(dim=1).sum(), x)
    return logits.detach(), found


@pytest.mark.filterwarnings("ignore:source ThroughDefense")
@pytest.mark.parametrize("name", DEFENSES)
def test_the_gradient_is_the_plain_one(name, convnet, images):
    target = DefendedClassifier(DEFENSES[name](), convnet()).eval()
    pictures, rng = images(4), Rng.for_images(0, torch.arange(4))
    plain = gradient(target, pictures, rng)
    source = ThroughDefense()(target)
    for logits, found in (gradient(source, pictures, rng), gradient(source, pictures, rng)):
        assert torch.equal(logits, plain[0])
        torch.testing.assert_close(found, plain[1], rtol=1e-6, atol=1e-7)
    assert rng.position == 0
    gradient(source, pictures, rng)
    after = torch.get_rng_state()
    gradient(target, pictures, rng)
    assert torch.equal(torch.get_rng_state(), after)  # as much was drawn as in the plain pass


def kept(model, images, rng):
    """Numbers that the graph keeps between forward and backward pass, parameters aside."""
    sizes = []
    own = {parameter.data_ptr() for parameter in model.parameters()}

    def pack(tensor):
        if tensor.data_ptr() not in own:
            sizes.append(tensor.numel())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        model(images.clone().requires_grad_(), rng)
    return sum(sizes)


def test_what_is_kept_grows_by_images_alone(linear, images):
    pictures, rng = images(2), Rng.for_images(0, torch.arange(2))
    few, many = (
        ThroughDefense()(DefendedClassifier(Purifier(steps), linear())) for steps in (5, 25)
    )
    more = kept(many, pictures, rng) - kept(few, pictures, rng)
    assert more <= 20 * pictures.numel()  # the states between the steps
    plain = [Target()(DefendedClassifier(Purifier(steps), linear())) for steps in (5, 25)]
    assert kept(plain[1], pictures, rng) - kept(plain[0], pictures, rng) > 60 * pictures.numel()


def test_the_last_steps_alone(linear, images):
    pictures, rng = images(3), Rng.for_images(0, torch.arange(3))
    target = DefendedClassifier(Purifier(4), linear())
    plain = gradient(target, pictures, rng)
    for last in (4, 9):
        whole = gradient(ThroughDefense(last=last)(target), pictures, rng)
        torch.testing.assert_close(whole[1], plain[1])
    cut = gradient(ThroughDefense(last=1)(target), pictures, rng)
    assert torch.equal(cut[0], plain[0])
    assert not torch.allclose(cut[1], plain[1])
    # By hand: the last step at the state before it, the identity up to there.
    g, streams = target.defense, rng.fold("defense")
    with torch.no_grad():
        before = Purifier(4)
        state = pictures
        for number in range(3):
            noise = 0.05 * streams.fold(number).normal(pictures.shape[1:])
            state = state + 0.1 * before.network(state + noise)
    state = state.requires_grad_()
    noise = 0.05 * streams.fold(3).normal(pictures.shape[1:])
    logits = target.classifier(state + 0.1 * g.network(state + noise))
    (expected,) = torch.autograd.grad(logits.logsumexp(dim=1).sum(), state)
    torch.testing.assert_close(cut[1], expected)


def test_an_attack_through_it_is_the_plain_attack(convnet, images):
    target = DefendedClassifier(Purifier(3), convnet()).eval()
    pictures, labels = images(4), torch.tensor([0, 1, 2, 0])
    rng = Rng.for_images(0, torch.arange(4))
    attack = ProjectedGradient(
        steps=3, step_size=0.02, threat=Linf(0.05), gradient=Average(draws=2)
    )
    plain = attack(Target()(target), pictures, labels, rng)
    through = attack(ThroughDefense()(target), pictures, labels, rng)
    torch.testing.assert_close(through, plain)
    asked = Queried(ThroughDefense()(target))
    attack(asked, pictures, labels, rng)
    assert asked.gradients == 4 * attack.cost().gradients  # computing anew is no further question


def test_what_cannot_be_gone_through_is_said(linear):
    with pytest.raises(UserError, match="no defense"):
        ThroughDefense()(DefendedClassifier(None, linear()))
    silent = DefendedClassifier(Purifier(shown=False), linear())
    with pytest.warns(UserWarning, match="declares no steps"):
        ThroughDefense()(silent)
    with pytest.raises(UserError, match="no last = 2"):
        ThroughDefense(last=2)(silent)
    with pytest.raises(UserError, match="leaves no defense"):
        ThroughDefense(inner=ClassifierOnly())(DefendedClassifier(Purifier(), linear()))


def test_parts_without_a_derivative_are_differentiated_as_inner_says(curved, images):
    g = AdversarialTransform(curved(seed=1), steps=2)
    target = DefendedClassifier(Chain([Purifier(2), g]), curved())
    pictures, rng = images(2), Rng.for_images(0, torch.arange(2))
    for inner in (IdentityBackward(), UnrolledTransform()):
        expected = gradient(inner(target), pictures, rng)
        found = gradient(ThroughDefense(inner=inner)(target), pictures, rng)
        assert torch.equal(found[0], expected[0])
        torch.testing.assert_close(found[1], expected[1])
