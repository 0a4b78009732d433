"""Models that clip their own input: gradients at black and white pixels are those of the model
without the clipping, and answers are about the images themselves.
"""

import pytest
import torch
from torch import nn

import robusttrain
from robusttrain import Rng
from robusttrain.attacks import Ensemble, Queried, Source, prepared
from robusttrain.attacks.parts.differentiation import input_gradients
from robusttrain.defenses import BitDepth
from robusttrain.models.clipping import clips, inward
from robusttrain.models.declared import answer
from robusttrain.models.defended import DefendedClassifier
from robusttrain.models.stepwise import recomputed

CLIPPING = {
    "clamp": lambda x: x.clamp(0, 1),
    "in place": lambda x: x.clamp_(0, 1),
    "bytes": lambda x: (255 * x).clamp(0, 255) / 255,
    "normalised": lambda x: ((x - 0.5) / 0.5).clip(-1, 1) / 2 + 0.5,
    "relu": lambda x: 1 - torch.relu(1 - torch.relu(x)),
    "hardtanh": lambda x: nn.functional.hardtanh(x, 0.0, 1.0),
    "flat": lambda x: x.flatten(1).clamp(0, 1).view(x.shape),
    "channels last": lambda x: x.permute(0, 2, 3, 1).clamp(0, 1).permute(0, 3, 1, 2),
}


class Clipped(nn.Module):
    """A model behind its own clipping."""

    def __init__(self, model, clip=CLIPPING["clamp"]):
        super().__init__()
        self.model, self.clip = model, clip

    def forward(self, images):
        return self.model(self.clip(images))


@pytest.fixture
def edges(images):
    """Images of black, white and other pixels, a third each."""
    of = images(6)
    kind = torch.arange(of.numel()).view(of.shape) % 3
    return torch.where(kind == 0, 0.0, torch.where(kind == 1, 1.0, of))


def gradient_of(model, points):
    source = Queried.of(model)
    rng = Rng.for_images(0, torch.arange(len(points)))
    with prepared(source):
        (found,) = input_gradients(lambda x: [source(x, rng)[:, 0]], points)
    return found[1]


@pytest.mark.parametrize("how", CLIPPING)
def test_the_gradient_is_that_without_clipping(how, linear, edges):
    plain = linear()
    clipped = Clipped(plain, CLIPPING[how])
    points = edges.clone().requires_grad_()
    (raw,) = torch.autograd.grad(clipped(points.clone())[:, 0].sum(), points)
    expected = gradient_of(plain, edges)
    assert (raw == 0).sum() >= edges.numel() // 3, "torch hands on what is missing here"
    assert torch.allclose(gradient_of(clipped, edges), expected, rtol=1e-5, atol=0)
    # Behind a defense, and in a fast copy of any precision, too.
    for dtype, tolerance in ((torch.float32, 1e-5), (torch.bfloat16, 0.02)):
        fast = DefendedClassifier.of(clipped).fast(dtype)
        found = gradient_of(fast, edges)
        assert torch.allclose(found, expected, rtol=tolerance, atol=1e-3 * expected.abs().max())


INSIDE = {
    "lower bound": lambda x: x.clamp(min=1e-3),
    "both bounds": lambda x: x.clamp(1e-6, 1 - 1e-6),
    "logit": lambda x: torch.special.logit(x, eps=1e-4).sigmoid(),
    "root and square": lambda x: x.sqrt().square(),
    "curve": lambda x: torch.where(x > 0.5, x ** (1 / 3), x),
}


@pytest.mark.parametrize("how", INSIDE)
def test_bounds_and_roots_inside_of_the_edges(how, linear, edges):
    """``x.clamp(1e-6)`` has no derivative at 0, and a root under a square has NaN."""
    plain = linear()
    clipped = Clipped(plain, INSIDE[how])
    black = edges * (edges < 1)
    points = black.clone().requires_grad_()
    (raw,) = torch.autograd.grad(clipped(points.clone())[:, 0].sum(), points)
    assert not (raw[black == 0].nan_to_num() != 0).any(), "torch hands on what is missing here"
    found, expected = gradient_of(clipped, black), gradient_of(plain, black)
    assert torch.allclose(found[black == 0], expected[black == 0], rtol=1e-3)


def test_a_root_leaves_other_pixels_their_share(linear, edges):
    """At 0 itself the derivative is infinite: nothing else would move within an L2 radius."""
    black = edges * (edges < 1)
    found = gradient_of(Clipped(linear(), torch.sqrt), black).abs()
    assert found.isfinite().all()
    assert found[black == 0].mean() < 100 * found[black > 0].mean()


def test_answers_without_a_gradient_are_about_the_images_themselves(linear, edges):
    asked = []
    model = Clipped(linear(), lambda x: asked.append(x.clone()) or x.clamp(0, 1))
    gradient_of(model, edges)
    with torch.no_grad():
        logits = Queried.of(model)(edges, Rng.for_images(0, torch.arange(len(edges))))
    assert torch.equal(asked[-1], edges)
    assert torch.equal(logits, linear()(edges))


def test_a_model_that_does_not_clip_is_asked_about_the_images_themselves(curved, edges):
    asked = []

    class Noting(nn.Module):
        def forward(self, images):
            asked.append(images.detach().clone())
            return curved()(images)

    gradient_of(Noting(), edges)
    assert len(asked) == 1, "once"
    assert torch.equal(asked[0], edges)


@pytest.mark.parametrize("channels", [2, 12])
def test_activations_are_no_clipped_images(channels, edges):
    """Not even where a layer has as many numbers as the images: 12 channels of half the side."""
    first = nn.Conv2d(edges.shape[1], channels, 2, stride=2)
    network = nn.Sequential(first, nn.ReLU(), nn.Flatten(), nn.LazyLinear(3))
    points = edges.clone().requires_grad_()
    assert network(edges).shape == (len(edges), 3)
    assert clips(network(points), points) is None
    assert clips(network(points.clamp(0, 1)), points) == 0


@pytest.mark.parametrize(
    "clip",
    [
        lambda x: x.permute(0, 2, 3, 1).clamp(0, 1).flatten(1),
        lambda x: x.transpose(1, 3).clamp(0, 1).flatten(1),
        lambda x: x.flatten(0, 1)[:, None].clamp(0, 1).view(x.shape).flatten(1),
        lambda x: torch.cat([each.clamp(0, 1) for each in x.unbind(1)], dim=1).flatten(1),
        lambda x: x.mean(dim=1, keepdim=True).clamp(0, 1).flatten(1),
        lambda x: x.mean(dim=1).clamp(0, 1).flatten(1),
    ],
    ids=["channels last", "turned", "one by one", "each channel", "grey", "grey without channel"],
)
def test_clipped_pictures_may_lie_in_memory_otherwise(clip, images):
    points = images(2).repeat(1, 3, 1, 2).requires_grad_()
    assert clips(clip(points) @ torch.ones(clip(points).shape[1], 2), points) == 0


def test_only_pixels_at_the_edges_are_moved_and_none_from_outside():
    points = torch.tensor([-0.5, 0.0, 1e-9, 0.3, 1.0, 1.5, float("nan")]).view(1, 1, 1, -1)
    moved = inward(points, torch.float32)
    half = torch.finfo(torch.float32).eps / 2
    expected = torch.tensor([-0.5, half, half, 0.3, 1 - half, 1.5, float("nan")])
    assert torch.allclose(moved.flatten(), expected, rtol=0, atol=0, equal_nan=True)


def attacked(name, model, edges, labels):
    rng = Rng.for_images(3, torch.arange(len(edges)))
    return robusttrain.attack(name, epsilon=0.3)(model, edges, labels, rng)


@pytest.mark.parametrize("name", ["fgsm", "pgd", "apgd-ce", "mifgsm", "fmn-linf"])
def test_attacks_find_what_they_find_without_clipping(name, curved, edges):
    plain = curved()
    labels = plain(edges).argmax(1)
    found = [attacked(name, model, edges, labels) for model in (plain, Clipped(plain))]
    assert torch.allclose(*found, rtol=0, atol=1e-4)
    assert (plain(found[1]).argmax(1) != labels).any()


def test_behind_a_defense_that_hands_on_black_and_white(curved, edges):
    """BPDA's identity differentiates the classifier at g(x), which is nothing but edges."""
    plain = curved()
    labels = plain(BitDepth(1)(edges)).argmax(1)
    targets = [DefendedClassifier(BitDepth(1), model) for model in (plain, Clipped(plain))]
    found = [attacked("bpda-i", target, edges, labels) for target in targets]
    assert (found[0] != edges).any()
    assert torch.allclose(*found, rtol=0, atol=1e-4)


class Given(Source):
    """A source that is this model."""

    def __init__(self, model):
        self.model = model

    def __call__(self, target):
        return self.model


def test_members_of_an_ensemble_that_clip(curved, edges):
    """Their activations are computed anew for the backward pass. In float64: processors round
    float32 otherwise, by more than some pixels' gradients.
    """
    plain, found = [curved(seed=seed).double() for seed in (1, 2)], []
    edges = edges.double()
    clipped = [Clipped(model) for model in plain]
    rng = Rng.for_images(0, torch.arange(len(edges)))
    for models in (plain, clipped, clipped):
        source = Queried.of(Ensemble([Given(model) for model in models], fuse="losses")(None))

        def loss(points, source=source):
            return [sum(weight * each[:, 0] for weight, each in source.loss_terms(points, rng))]

        with prepared(source):
            found += [gradient for _, gradient in input_gradients(loss, edges)]
    assert torch.allclose(found[1], found[0], rtol=0, atol=1e-12)
    assert torch.equal(found[2], found[1])


def test_steps_that_are_computed_anew(curved, edges):
    plain, found = curved().double(), []
    for model in (plain, Clipped(plain)):
        points = edges.double().requires_grad_()

        def step(images, model=model):
            return answer(model, images, None)

        found += torch.autograd.grad(recomputed(step, points)[:, 0].sum(), points)
    assert torch.allclose(*found, rtol=0, atol=1e-12)
