"""Backward through the steps of g, against automatic differentiation and numerical Jacobians."""

import pytest
import torch

from robusttrain.attacks import (
    FewerSteps,
    FixedRandomness,
    IdentityBackward,
    Linf,
    ProjectedGradient,
    TargetedCrossEntropy,
    UnrolledTransform,
    call_model,
)
from robusttrain.attacks.sources.unrolled import (
    _Unroll,
    _Unrolling,
    projection_derivative,
    smooth_projection,
    smooth_sign,
)
from robusttrain.attacks.sources.unrolled import smooth_sign_derivative as sign_derivative
from robusttrain.core.errors import OptionError, UserError
from robusttrain.defenses import AdversarialTransform, Chain, RandomResizePad
from robusttrain.models.defended import DefendedClassifier

KINDS = ("automatic", "softsign", "tanh")


def defended(curved, **options):
    return DefendedClassifier(
        AdversarialTransform(curved(seed=1), **{"steps": 4, **options}), curved()
    )


def product(transform, images, rng, v):
    """v times the Jacobian of ``transform``, by its backward pass."""
    x = images.clone().requires_grad_()
    (found,) = torch.autograd.grad(transform(x, rng), x, v)
    return found


def noise(like, seed=3):
    return torch.randn(like.shape, generator=torch.Generator().manual_seed(seed), dtype=like.dtype)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"random_start": False},
        {"target": "predicted"},
        {"clip": True, "radius": 0.5},
        {"steps": 0},
    ],
)
def test_forward_is_g_itself(curved, images, streams, kind, options):
    target = defended(curved, **options)
    source = UnrolledTransform(kind)(target)
    assert torch.equal(call_model(source, images(), streams()), target(images(), streams()))


@pytest.mark.parametrize("kind", ["softsign", "tanh"])
@pytest.mark.parametrize(("steps", "radius"), [(1, 0.02), (4, 0.02), (4, 0.3)])
def test_the_smoothed_g_has_the_jacobian_that_central_differences_find(
    curved, images, streams, kind, steps, radius
):
    f_b = curved(seed=1, side=4).double()
    f_b.first.data *= 3
    threat = Linf(radius, clip=False)
    attack = ProjectedGradient(
        steps, 0.5, threat=threat, objective=TargetedCrossEntropy("least_likely")
    )
    unrolling = _Unrolling(attack, f_b, f_b, kind, smooth=True)

    def smoothed(x, rng):
        return _Unroll.apply(x, unrolling, rng)

    x = images(2, side=4).double()
    v = noise(x)
    found = product(smoothed, x, streams(2), v)
    numerical = torch.zeros_like(x)
    for position in range(x[0].numel()):
        step = torch.zeros_like(x)
        step.view(2, -1)[:, position] = 1e-6
        change = (smoothed(x + step, streams(2)) - smoothed(x - step, streams(2))) / 2e-6
        numerical.view(2, -1)[:, position] = (v * change).flatten(1).sum(1)
    torch.testing.assert_close(found, numerical, rtol=1e-5, atol=1e-5)
    assert (found - v).abs().max() > 1  # and is far from the identity


@pytest.mark.parametrize("clip", [False, True])
def test_automatic_is_what_plain_differentiation_of_the_written_out_loop_gives(
    curved, images, streams, clip
):
    target = defended(curved, clip=clip, radius=0.4, random_start=False)
    attack, f_b = target.defense.attack, target.defense.f_b.module

    def written_out(x, rng):
        least_likely = f_b(x).argmin(1)
        found = x
        for _ in range(4):
            loss = torch.nn.functional.cross_entropy(f_b(found), least_likely, reduction="sum")
            (gradient,) = torch.autograd.grad(loss, found, create_graph=True)
            found = x + (found - attack.alpha * gradient.sign() - x).clamp(-0.4, 0.4)
            found = found.clamp(0, 1) if clip else found
        return found

    v = noise(images())
    found = product(UnrolledTransform("automatic")(target).defense, images(), streams(), v)
    torch.testing.assert_close(found, product(written_out, images(), streams(), v))
    if not clip:  # sgn' = 0, and what the projection takes from the iterate it gives to the centre
        torch.testing.assert_close(found, v)
    else:
        assert (found == 0).any()


@pytest.mark.parametrize("last", [None, 2])
def test_the_smooth_form_of_a_g_that_clips_clips_nothing_backward_either(
    curved, images, streams, last
):
    """Where sgn' is 0 its derivative is the identity; it cut off pixels that had left the box."""
    target = defended(curved, clip=True, radius=0.4, random_start=False)
    defense = UnrolledTransform("automatic", smooth=True, last=last)(target).defense
    assert defense(images(), streams()).max() > 1
    v = noise(images())
    torch.testing.assert_close(product(defense, images(), streams(), v), v)


@pytest.mark.parametrize("kind", ["softsign", "tanh"])
def test_exact_forward_takes_the_smooth_derivatives_at_the_true_iterates(
    curved, images, streams, kind
):
    """One step of g, written out: J^T v = v - w + w + eps H sigma' w with w = pi' v."""
    target = defended(curved, steps=1, radius=0.05)
    defense, x = target.defense, images()
    v = noise(x)
    found = product(UnrolledTransform(kind)(target).defense, x, streams(), v)
    f_b, rng = defense.f_b.module, streams().fold("defense")
    start = (x + rng.fold("start").uniform(x.shape[1:], -0.05, 0.05)).requires_grad_()
    loss = torch.nn.functional.cross_entropy(f_b(start), f_b(x).argmin(1), reduction="sum")
    (gradient,) = torch.autograd.grad(-loss, start, create_graph=True)
    alpha = 0.05 / 6
    offset = start.detach() + alpha * gradient.detach().sign() - x
    w = projection_derivative(offset, 0.05, kind) * v
    (curvature,) = torch.autograd.grad(
        (gradient * (alpha * sign_derivative(gradient.detach(), kind) * w)).sum(), start
    )
    torch.testing.assert_close(found, v + curvature)
    assert (offset.abs() > 0.05).any()
    assert curvature.abs().max() > 1e-4


@pytest.mark.parametrize("kind", ["softsign", "tanh"])
def test_stand_ins_have_the_derivatives_that_are_said_of_them(kind):
    x = torch.linspace(-3, 3, 101, dtype=torch.float64)
    for function, derivative in (
        (lambda x: smooth_sign(x, kind), sign_derivative(x, kind)),
        (lambda x: smooth_projection(x, 0.73), projection_derivative(x, 0.73, kind)),
    ):
        numerical = (function(x + 1e-6) - function(x - 1e-6)) / 2e-6
        torch.testing.assert_close(derivative, numerical, rtol=1e-6, atol=1e-8)
    torch.testing.assert_close(
        projection_derivative(torch.tensor([0.1, -0.5]), 0.2, kind), torch.tensor([1, 1 / 1.5**2])
    )


def test_bfloat16_g_is_differentiated_in_float32(curved, images, streams):
    target = defended(curved, precision="bfloat16")
    source = UnrolledTransform()(target)
    assert torch.equal(call_model(source, images(), streams()), target(images(), streams()))
    v = noise(images())
    half = product(source.defense, images(), streams(), v)
    full = product(UnrolledTransform()(defended(curved)).defense, images(), streams(), v)
    assert torch.nn.functional.cosine_similarity(half.flatten(1), full.flatten(1)).min() > 0.9


def test_it_says_what_it_cannot_unroll(curved):
    for defense in (RandomResizePad(10), Chain([RandomResizePad(10)])):
        with pytest.raises(
            UserError, match=f"UnrolledTransform: {type(defense).__name__} is no iterative"
        ):
            UnrolledTransform()(DefendedClassifier(defense, curved()))
    with pytest.raises(UserError, match="has no defense"):
        UnrolledTransform()(DefendedClassifier(None, curved()))
    with pytest.raises(OptionError, match="derivatives"):
        UnrolledTransform("relu")


def test_fewer_steps_is_the_target_with_a_shorter_g(curved, images, streams):
    target = defended(curved, steps=6)
    short = DefendedClassifier(AdversarialTransform(curved(seed=1), steps=2), target.classifier)
    source = FewerSteps(2)(target)
    assert torch.equal(call_model(source, images(), streams()), short(images(), streams()))
    assert target.defense.attack.steps == 6
    source = FewerSteps(2, UnrolledTransform("tanh"))(target)
    v = noise(images())
    expected = product(UnrolledTransform("tanh")(short).defense, images(), streams(), v)
    assert torch.equal(product(source.defense, images(), streams(), v), expected)
    with pytest.raises(UserError, match="FewerSteps: RandomResizePad is no iterative"):
        FewerSteps()(DefendedClassifier(RandomResizePad(10), curved()))
    with pytest.raises(OptionError, match="steps"):
        FewerSteps(-1)


def test_fixed_randomness_draws_the_same_for_every_image_and_step(curved, images, streams):
    target = defended(curved)
    source = FixedRandomness()(target)
    x = images()
    first = call_model(source, x, streams())
    assert torch.equal(first, call_model(source, x, streams(seed=5)))
    torch.testing.assert_close(first[[2]], call_model(source, x[[2]], streams(1)))
    assert not torch.equal(first, call_model(FixedRandomness(draw=1)(target), x, streams()))
    assert not torch.equal(first, target(x, streams()))
    # Gradients are those of the inner source.
    frozen = call_model(FixedRandomness(inner=UnrolledTransform())(target), x, None)
    assert torch.equal(frozen, first)


def test_fixed_randomness_needs_randomness(curved):
    with pytest.raises(UserError, match="draws nothing"):
        FixedRandomness()(defended(curved, random_start=False))


def test_unrolled_breaks_a_g_of_one_step_where_the_identity_is_wrong(curved, images, streams):
    """A defense that it is made for: one smooth step moves far, so that g's own curvature
    decides.
    """
    target = defended(curved, steps=1, random_start=False, radius=0.2)
    x = images(16)
    labels = target(x, streams(16)).argmax(1)
    attack = ProjectedGradient(20, 0.01, threat=Linf(0.08), random_start=False)
    left = {
        type(source).__name__: (
            target(attack(source(target), x, labels, streams(16)), streams(16)).argmax(1) == labels
        )
        .float()
        .mean()
        for source in (UnrolledTransform(), IdentityBackward())
    }
    assert left["UnrolledTransform"] <= 0.25, left
