"""g: its formula against a plain loop, its ball, its independence of everything around it, and
every option.
"""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from robusttrain.core.errors import OptionError
from robusttrain.core.rng import Rng
from robusttrain.defenses import AdversarialTransform
from robusttrain.models.defended import DefendedClassifier
from robusttrain.models.frozen import Frozen
from robusttrain.storage.weights import save_tensors


def paper(
    f_b: nn.Module, x: Tensor, noise: Tensor, radius: float, steps: int, step_size: float
) -> Tensor:
    """x'_t = Proj(x'_{t-1} - eps sign grad loss(f_b(x'_{t-1}), y_L)), word for word."""
    y_l = f_b(x).argmin(dim=1)
    moved = x + noise
    for _ in range(steps):
        moved = moved.detach().requires_grad_()
        loss = F.cross_entropy(f_b(moved), y_l)
        (gradient,) = torch.autograd.grad(loss, moved)
        moved = (moved - step_size * gradient.sign()).detach()
        moved = torch.minimum(torch.maximum(moved, x - radius), x + radius)
    return moved


def losses(model: nn.Module, images: Tensor, classes: Tensor) -> Tensor:
    return F.cross_entropy(model(images), classes, reduction="none").detach()


@pytest.mark.parametrize(("radius", "steps"), [(0.2, 13), (0.05, 3), (0.3, 1)])
def test_equals_the_papers_loop(radius, steps, curved, images, streams):
    f_b, x = curved(), images(6)
    noise = streams(6).fold("start").uniform(x.shape[1:], -radius, radius)
    expected = paper(copy.deepcopy(f_b), x, noise, radius, steps, radius / 6)
    result = AdversarialTransform(f_b, radius=radius, steps=steps).transform(x, streams(6))
    assert (
        (result - expected).abs() < 1e-6
    ).double().mean() > 0.999  # a gradient of almost zero may change its sign


@pytest.mark.parametrize("random_start", [True, False])
def test_one_step_on_a_linear_model_with_two_classes(random_start, linear, images, streams):
    f_b, x = linear(classes=2), images(5)
    g = AdversarialTransform(f_b, radius=0.1, steps=1, step_size=0.03, random_start=random_start)
    least = f_b(x).argmin(dim=1)
    towards = (f_b.weight[least] - f_b.weight[1 - least]).sign().view_as(x)
    start = streams(5).fold("start").uniform(x.shape[1:], -0.1, 0.1) if random_start else 0
    expected = x + (start + 0.03 * towards).clamp(-0.1, 0.1) if random_start else x + 0.03 * towards
    torch.testing.assert_close(g.transform(x, streams(5)), expected, rtol=0, atol=1e-6)


def test_many_steps_on_a_linear_model_reach_the_corner_of_the_ball(linear, images, streams):
    f_b, x = linear(classes=2), images(5)
    least = f_b(x).argmin(dim=1)
    towards = (f_b.weight[least] - f_b.weight[1 - least]).sign().view_as(x)
    result = AdversarialTransform(f_b, radius=0.1, steps=13)(x, streams(5))
    torch.testing.assert_close(result, x + 0.1 * towards, rtol=0, atol=1e-6)


@pytest.mark.parametrize("target", ["least_likely", "predicted"])
def test_it_goes_where_the_target_says(target, curved, images, streams):
    f_b, x = curved(), images(8)
    logits = f_b(x)
    moved = AdversarialTransform(f_b, radius=0.1, target=target, random_start=False)(x, streams(8))
    if target == "least_likely":
        assert (losses(f_b, moved, logits.argmin(1)) < losses(f_b, x, logits.argmin(1)) - 0.5).all()
    else:
        assert (losses(f_b, moved, logits.argmax(1)) > losses(f_b, x, logits.argmax(1)) + 0.5).all()


def test_it_stays_in_the_ball_and_leaves_the_box_unless_told(convnet, streams):
    x = torch.rand(
        6, 3, 8, 8, generator=torch.Generator().manual_seed(0)
    ).round()  # all pixels at the bounds
    free = AdversarialTransform(convnet(), radius=0.2)(x, streams(6))
    boxed = AdversarialTransform(convnet(), radius=0.2, clip=True)(x, streams(6))
    for result in (free, boxed):
        assert 0.1 < (result - x).abs().max() <= 0.2 + 1e-6
    assert free.min() < -0.1
    assert free.max() > 1.1
    assert boxed.min() >= 0
    assert boxed.max() <= 1


@pytest.mark.parametrize("options", [{"radius": 0.0}, {"steps": 0, "random_start": False}])
def test_without_radius_or_steps_it_is_the_identity(options, convnet, images, streams):
    assert torch.equal(AdversarialTransform(convnet(), **options)(images(), streams()), images())


def test_the_step_size_defaults_to_a_sixth_of_the_radius(curved, images, streams):
    given = AdversarialTransform(curved(), radius=0.12, steps=2, step_size=0.02)
    assert AdversarialTransform(curved(), radius=0.12).attack.alpha == pytest.approx(0.02)
    result = AdversarialTransform(curved(), radius=0.12, steps=2)(images(), streams())
    torch.testing.assert_close(result, given(images(), streams()), rtol=0, atol=1e-6)


def test_without_a_random_start_it_is_deterministic(curved, images, streams):
    g = AdversarialTransform(curved(), random_start=False)
    assert not g.random
    assert torch.equal(g(images(), streams(seed=0)), g(images(), streams(seed=1)))
    assert not AdversarialTransform(curved(), radius=0).random


def test_with_a_random_start_streams_decide(curved, images, streams):
    g = AdversarialTransform(curved())
    assert g.random
    assert not g.differentiable
    assert torch.equal(g(images(), streams()), g(images(), streams()))
    assert not torch.equal(g(images(), streams()), g(images(), streams(seed=1)))


def test_without_streams_torchs_global_seed_decides(curved, images):
    g, results = AdversarialTransform(curved()), []
    for seed in (3, 3, 4):
        torch.manual_seed(seed)
        results.append(g(images()))
    assert torch.equal(results[0], results[1])
    assert not torch.equal(results[0], results[2])


def test_an_image_alone_is_transformed_as_in_its_batch(linear, images, streams):
    g, x = AdversarialTransform(linear(classes=4)), images(8)
    whole, order = g(x, streams(8)), torch.tensor([5, 0, 3])
    torch.testing.assert_close(g(x[order], streams(8)[order]), whole[order], rtol=0, atol=1e-6)
    for number in range(8):
        part = slice(number, number + 1)
        torch.testing.assert_close(g(x[part], streams(8)[part]), whole[part], rtol=0, atol=1e-6)


def under_inference_mode(g: nn.Module, x: Tensor, rng: Rng) -> Tensor:
    with torch.inference_mode():
        return g(x.clone(), Rng(rng.keys.clone()))


def under_no_grad(g: nn.Module, x: Tensor, rng: Rng) -> Tensor:
    with torch.no_grad():
        return g(x, rng)


def under_autocast(g: nn.Module, x: Tensor, rng: Rng) -> Tensor:
    with torch.autocast("cpu", torch.bfloat16):
        return g(x, rng)


@pytest.mark.parametrize("around", [under_inference_mode, under_no_grad, under_autocast])
def test_what_is_around_it_changes_nothing(around, convnet, images, streams):
    g = AdversarialTransform(convnet())
    result = around(g, images(), streams())
    assert result.dtype == torch.float32
    assert not result.requires_grad
    assert torch.equal(result.clone(), g(images(), streams()))
    trained = AdversarialTransform(convnet())
    trained.train()
    assert torch.equal(trained(images(), streams()), g(images(), streams()))


def test_it_touches_neither_f_b_nor_the_images_nor_the_global_state(convnet, images, streams):
    f_b = convnet().train()
    g, x, state = AdversarialTransform(f_b), images(), torch.get_rng_state()
    before = copy.deepcopy(f_b.state_dict())
    g.train()(x, streams())
    assert all(torch.equal(value, before[name]) for name, value in f_b.state_dict().items())
    assert all(
        parameter.grad is None and not parameter.requires_grad for parameter in f_b.parameters()
    )
    assert not any(module.training for module in f_b.modules())
    assert torch.equal(x, images())
    assert torch.equal(torch.get_rng_state(), state)


def test_its_derivative_is_the_identity(curved, images, streams):
    g, x = AdversarialTransform(curved()), images().requires_grad_()
    result = g(x, streams())
    assert torch.equal(result.detach(), g(images(), streams()))
    cotangent = images(seed=5)
    (gradient,) = torch.autograd.grad(result, x, cotangent)
    assert torch.equal(gradient, cotangent)


def test_an_optimizer_does_not_find_f_b(convnet):
    defended = DefendedClassifier(AdversarialTransform(convnet(seed=1)), convnet())
    optimizer = torch.optim.SGD(defended.parameters(), lr=0.1)
    found = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
    assert found == {id(parameter) for parameter in defended.classifier.parameters()}
    assert isinstance(defended.defense.f_b, Frozen)
    assert any(name.startswith("defense.f_b.") for name in defended.state_dict())


def test_f_bs_weights_come_from_a_file(tmp_path, curved, images, streams):
    save_tensors(curved(seed=1), tmp_path / "f_b.safetensors")
    g = AdversarialTransform(curved(seed=0), weights=str(tmp_path / "f_b.safetensors"))
    assert torch.equal(
        g(images(), streams()), AdversarialTransform(curved(seed=1))(images(), streams())
    )


def test_loaded_weights_are_used_at_once(curved, images, streams):
    one, other = (AdversarialTransform(curved(seed=seed)) for seed in (0, 1))
    assert not torch.equal(one(images(), streams()), other(images(), streams()))
    one.load_state_dict(other.state_dict())
    assert torch.equal(one(images(), streams()), other(images(), streams()))


@pytest.mark.parametrize(
    "option",
    [
        {"radius": 0.1},
        {"steps": 2},
        {"step_size": 0.01},
        {"target": "predicted"},
        {"random_start": False},
        {"clip": True},
        {"precision": "bfloat16"},
    ],
    ids=lambda option: next(iter(option)),
)
def test_every_option_changes_the_outcome(option, curved, images, streams):
    x = images() / 4  # dark: the ball reaches below 0
    plain = AdversarialTransform(curved())(x, streams())
    assert (AdversarialTransform(curved(), **option)(x, streams()) - plain).abs().max() > 1e-3


def test_half_precision_is_close(convnet, images, streams):
    x = images()
    exact, half = (
        AdversarialTransform(convnet(), random_start=False, precision=precision)(x, streams())
        for precision in ("float32", "bfloat16")
    )
    assert half.dtype == torch.float32
    assert not torch.equal(half, exact)
    assert ((half - x).sign() == (exact - x).sign()).double().mean() > 0.9


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("radius", -0.1),
        ("radius", float("inf")),
        ("steps", -1),
        ("step_size", 0.0),
        ("step_size", -0.1),
        ("step_size", float("nan")),
        ("target", "most_likely"),
        ("precision", "float16"),
    ],
)
def test_impossible_options_are_named(option, value, curved):
    with pytest.raises(OptionError, match=rf"^{option} = "):
        AdversarialTransform(curved(), **{option: value})
