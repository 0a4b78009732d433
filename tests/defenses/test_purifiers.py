"""Denoiser and diffusion: known answers, samplers against their papers' formulas, the adapter."""

import json
import math
import sys
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from robusttrain.attacks import ThroughDefense
from robusttrain.core.errors import OptionError, UserError
from robusttrain.core.rng import Rng
from robusttrain.defenses import Chain, Denoiser, Diffusion, MedianSmoothing
from robusttrain.models import Autoencoder, DiffusersUNet, NoiseNetwork, NoisePredictor
from robusttrain.models.defended import DefendedClassifier
from robusttrain.storage.weights import save_tensors

BETAS = torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64)
A = torch.cat([torch.ones(1, dtype=torch.float64), (1 - BETAS).cumprod(0)])


class Scaled(nn.Module):
    """x / 2."""

    def __init__(self) -> None:
        super().__init__()
        self.factor = nn.Parameter(torch.tensor(0.5))

    def forward(self, images):
        return self.factor * images


class Knowing(NoisePredictor):
    """The noise in noisy versions of one image: e = (x_t - sqrt(a_t) x_0) / sqrt(1 - a_t)."""

    def __init__(self, image):
        super().__init__(A[1:].float())
        self.image = image

    def forward(self, noisy, level):
        a = self.signal[level][:, None, None, None]
        return (noisy - a.sqrt() * (2 * self.image - 1)) / (1 - a).sqrt()


class Gaussian(NoisePredictor):
    """The best e for images whose pixels are normal, with variance v around 0 in [-1, 1]: sqrt(1 -
    a_t) x_t / (a_t v + 1 - a_t).
    """

    def __init__(self, v):
        super().__init__(A[1:].float())
        self.v = v

    def forward(self, noisy, level):
        a = self.signal[level][:, None, None, None]
        return (1 - a).sqrt() * noisy / (a * self.v + 1 - a)


# Denoiser


def test_the_denoiser_is_its_network_and_frozen(images, streams):
    network = Scaled()
    g = Denoiser(network)
    x = images().requires_grad_()
    assert torch.equal(g(x, streams()), x / 2)
    (gradient,) = torch.autograd.grad(g(x, streams()).sum(), x)
    assert torch.equal(gradient, torch.full_like(x, 0.5))
    assert not [*g.parameters()]
    assert not network.factor.requires_grad
    assert (g.random, g.differentiable, g.iterative) == (False, True, False)
    assert "network.factor" in g.state_dict()


def test_weights_from_a_file(images, streams, tmp_path):
    other = Scaled()
    with torch.no_grad():
        other.factor.fill_(0.25)
    save_tensors(other, tmp_path / "w.safetensors")
    g = Denoiser(Scaled(), str(tmp_path / "w.safetensors"))
    assert torch.equal(g(images(), streams()), images() / 4)
    with pytest.raises(OptionError, match="weights"):
        Denoiser(Autoencoder(), str(tmp_path / "w.safetensors"))


@pytest.mark.parametrize("shape", [(1, 16, 16), (3, 32, 32), (3, 13, 10), (1, 5, 4)])
def test_the_autoencoder_keeps_any_size(shape):
    network = Autoencoder(shape[0], width=8, depth=1).eval()
    x = torch.rand(2, *shape)
    with torch.no_grad():
        whole = network(x)
        torch.testing.assert_close(network(x[1:]), whole[1:], rtol=1e-4, atol=1e-5)
    assert whole.shape == x.shape
    assert not torch.equal(whole, x)


# Diffusion


@pytest.mark.parametrize("sampler", ["ancestral", "ddim"])
@pytest.mark.parametrize("steps", [1, 7, None])
def test_a_model_that_knows_the_image_gives_it_back(sampler, steps, images, streams):
    x = images()
    g = Diffusion(Knowing(x), steps=steps, sampler=sampler)
    torch.testing.assert_close(g(x, streams()), x, rtol=0, atol=1e-4)


def test_noise_is_as_much_as_t_star_says(images, streams):
    """With a model that finds no noise, one step leaves x_t* / sqrt(a): x, and noise of a standard
    deviation of sqrt((1 - a) / a).
    """

    class Blind(NoisePredictor):
        def forward(self, noisy, level):
            return torch.zeros_like(noisy)

    x = images(4, 3, 64)
    for t_star, level in ((0.1, 100), (0.5, 500), (1.0, 1000)):
        g = Diffusion(Blind(A[1:].float()), t_star=t_star, steps=1)
        change = 2 * (g(x, streams()) - x)
        expected = math.sqrt((1 - A[level]) / A[level])
        assert change.std() == pytest.approx(expected, rel=0.02)
        assert change.mean().abs() < 0.03 * expected


def test_levels_fall_from_t_star_to_zero():
    model = Gaussian(0.2)
    assert Diffusion(model, steps=4).levels == [100, 75, 50, 25, 0]
    assert Diffusion(model, t_star=0.01, steps=3).levels == [10, 7, 3, 0]
    assert Diffusion(model).levels == [*range(100, -1, -1)]
    assert Diffusion(model).with_steps(2).levels == [100, 50, 0]


def test_ancestral_steps_are_those_of_ho_et_al(images, streams):
    """All levels: x_{t-1} = (x_t - beta_t / sqrt(1 - a_t) e) / sqrt(1 - beta_t) + sigma_t z, with
    sigma_t^2 = (1 - a_{t-1}) / (1 - a_t) beta_t [algorithm 2 and section 3.2].
    """
    x, model, rng = images(), Gaussian(0.2), streams().fold("defense")
    found = Diffusion(model, t_star=0.005)(x, streams())
    noise = rng.fold("noise").normal(x.shape[1:])
    state = A[5].sqrt() * (2 * x - 1) + (1 - A[5]).sqrt() * noise
    for number, t in enumerate([5, 4, 3, 2, 1]):
        beta, level = BETAS[t - 1], torch.full((4,), t)
        e = model(state.float(), level)
        state = (state - beta / (1 - A[t]).sqrt() * e) / (1 - beta).sqrt()
        if t > 1:
            z = rng.fold(number).normal(x.shape[1:])
            state = state + ((1 - A[t - 1]) / (1 - A[t]) * beta).sqrt() * z
    torch.testing.assert_close(found, ((state + 1) / 2).float(), rtol=0, atol=1e-5)


def test_ddim_of_normal_pixels_is_known(images, streams):
    """The exact flow scales by sqrt(v / (a v + 1 - a)): many steps come near it, few do not."""
    x, v = images(), 0.2
    rng = streams().fold("defense").fold("noise")
    noisy = A[500].sqrt() * (2 * x - 1) + (1 - A[500]).sqrt() * rng.normal(x.shape[1:])
    exact = ((noisy * (v / (A[500] * v + 1 - A[500])).sqrt() + 1) / 2).float()

    def error(steps):
        g = Diffusion(Gaussian(v), t_star=0.5, steps=steps, sampler="ddim")
        return float((g(x, streams()) - exact).abs().max())

    assert error(500) < 5e-3 < error(2)
    assert error(500) < error(50) < error(5)


def test_ancestral_samples_have_the_models_variance(streams):
    """From pure noise, images of the model: normal pixels of variance v in [-1, 1]."""
    x = torch.full((8, 3, 32, 32), 0.5)
    g = Diffusion(Gaussian(0.2), t_star=1.0, steps=250)
    pixels = 2 * g(x, streams(8)) - 1
    assert pixels.std() == pytest.approx(math.sqrt(0.2), rel=0.05)


def test_each_step_draws_for_itself(images, streams):
    """Other steps, samplers and shares give other images; the same streams the same."""
    x, model = images(), NoiseNetwork(width=8, depth=1).eval()
    options = [{}, {"steps": 5}, {"sampler": "ddim"}, {"t_star": 0.2}]
    found = [Diffusion(model, **{"steps": 10, **each})(x, streams()) for each in options]
    assert all(not torch.equal(found[0], other) for other in found[1:])
    assert torch.equal(Diffusion(model, steps=10)(x, streams()), found[0])


def test_the_gradient_is_that_of_all_steps(images, streams):
    torch.manual_seed(0)
    g, x = Diffusion(NoiseNetwork(width=8, depth=2), steps=5), images(2)
    points = x.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(g(points, streams(2)).square().sum(), points)

    def value(images):
        return g(images, streams(2)).double().square().sum()

    direction = gradient / gradient.norm()
    slope = (value(x + 0.01 * direction) - value(x - 0.01 * direction)) / 0.02
    assert float(slope) == pytest.approx(float(gradient.norm()), rel=0.01)


def test_the_gradient_with_each_step_computed_anew_is_the_same(convnet, images):
    """In value bit for bit; in derivative up to the order of sums."""
    torch.manual_seed(0)
    target = DefendedClassifier(Diffusion(NoiseNetwork(width=8, depth=2), steps=5), convnet(10))
    through = ThroughDefense()(target)
    results = []
    for model in (target, through):
        points = images(2).requires_grad_()
        logits = model(points, Rng.for_images(0, torch.arange(2)))
        results.append((logits, *torch.autograd.grad(logits.square().sum(), points)))
    assert torch.equal(results[0][0], results[1][0])
    assert torch.allclose(results[0][1], results[1][1], rtol=1e-4, atol=1e-7)
    assert results[0][1].abs().max() > 1e-4


def test_in_a_chain_and_before_a_classifier(convnet, images, streams):
    g = Diffusion(NoiseNetwork(width=8, depth=1), steps=3)
    chain = Chain([MedianSmoothing(), g])
    assert (chain.random, chain.differentiable, chain.iterative) == (True, True, True)
    assert not chain.searches
    target = DefendedClassifier(chain, convnet()).eval()
    x, rng = images(), streams()
    whole = target(x, rng)
    torch.testing.assert_close(target(x[2:], rng[2:]), whole[2:], rtol=1e-4, atol=1e-4)


def test_networks_tell_noise_levels_apart(images):
    torch.manual_seed(0)
    network = NoiseNetwork(width=8, depth=1)
    first, last = (network(images(), torch.full((4,), level)) for level in (1, 1000))
    assert not torch.allclose(first, last)
    assert network.levels == 1000
    torch.testing.assert_close(network.signal, A.float())
    assert "signal" not in network.state_dict()


@pytest.mark.parametrize(
    ("make", "option"),
    [
        (lambda: Diffusion(Gaussian(1), t_star=0), "t_star"),
        (lambda: Diffusion(Gaussian(1), t_star=1.5), "t_star"),
        (lambda: Diffusion(Gaussian(1), steps=0), "steps"),
        (lambda: Diffusion(Gaussian(1), steps=101), "steps"),
        (lambda: Diffusion(Gaussian(1)).with_steps(0), "steps"),
        (lambda: Diffusion(Gaussian(1), sampler="euler"), "sampler"),
        (lambda: NoiseNetwork(width=7), "width"),
        (lambda: NoiseNetwork(first_beta=0.1), "first_beta"),
        (lambda: NoiseNetwork(last_beta=1), "last_beta"),
    ],
)
def test_impossible_options_are_named(make, option):
    with pytest.raises(OptionError, match=rf"^{option} = "):
        make()


# diffusers: a stand-in with the interface of UNet2DModel and DDPMScheduler


@pytest.fixture
def folder(tmp_path):
    """A pipeline's folder, as ``save_pretrained`` lays it out."""
    for name, file in (
        ("unet", "config.json"),
        ("unet", "diffusion_pytorch_model.safetensors"),
        ("scheduler", "scheduler_config.json"),
    ):
        (tmp_path / name).mkdir(exist_ok=True)
        (tmp_path / name / file).write_text(json.dumps({}))
    return tmp_path


@pytest.fixture
def diffusers(monkeypatch):
    """Notes how it was called; its model returns levels as noise, and variances behind them."""
    calls = []

    class UNet2DModel(nn.Module):
        config = SimpleNamespace(in_channels=3)

        @classmethod
        def from_pretrained(cls, folder, **options):
            calls.append((folder, options))
            return cls()

        def forward(self, sample, timestep):
            levels = timestep[:, None, None, None].expand_as(sample).float()
            return SimpleNamespace(sample=torch.cat([levels, -levels], dim=1))

    class DDPMScheduler:
        alphas_cumprod = A[1:].float()
        config = SimpleNamespace(prediction_type="epsilon")

        @classmethod
        def from_pretrained(cls, folder, **options):
            calls.append((folder, options))
            return cls()

    module = SimpleNamespace(UNet2DModel=UNet2DModel, DDPMScheduler=DDPMScheduler, calls=calls)
    monkeypatch.setitem(sys.modules, "diffusers", module)
    return module


def test_a_model_of_diffusers(folder, diffusers, images, streams):
    model = DiffusersUNet(str(folder))
    local = {"local_files_only": True}
    assert diffusers.calls == [
        (str(folder / "scheduler"), local),
        (str(folder / "unet"), {"use_safetensors": True, **local}),
    ]
    assert (model.levels, model.in_channels, model.brings_weights) == (1000, 3, True)
    # Levels count from 1 here, and from 0 there; variances are left out.
    noise = model(images(), torch.tensor([1, 2, 100, 1000]))
    assert noise.shape == images().shape
    assert noise[:, 0, 0, 0].tolist() == [0, 1, 99, 999]
    assert Diffusion(model, steps=2)(images(), streams()).shape == images().shape


def test_a_flat_folder_of_diffusers(tmp_path, diffusers):
    for file in ("config.json", "diffusion_pytorch_model.safetensors", "scheduler_config.json"):
        (tmp_path / file).write_text("{}")
    DiffusersUNet(str(tmp_path))
    assert {place for place, _ in diffusers.calls} == {str(tmp_path)}


def test_a_folder_without_safetensors_is_refused(folder, diffusers):
    weights = folder / "unet" / "diffusion_pytorch_model.safetensors"
    weights.rename(weights.with_suffix(".bin"))
    with pytest.raises(OptionError, match="no diffusion_pytorch_model.safetensors"):
        DiffusersUNet(str(folder))
    assert not diffusers.calls


def test_a_model_of_diffusers_that_predicts_something_else_is_refused(folder, diffusers):
    diffusers.DDPMScheduler.config = SimpleNamespace(prediction_type="v_prediction")
    with pytest.raises(OptionError, match="predicts 'v_prediction', not the noise"):
        DiffusersUNet(str(folder))


def test_without_diffusers_the_extra_is_named(folder, monkeypatch):
    monkeypatch.setitem(sys.modules, "diffusers", None)
    with pytest.raises(UserError, match=r"pip install .robusttrain\[diffusers\]"):
        DiffusersUNet(str(folder))


def test_the_real_diffusers(tmp_path, images, streams):
    """Where it is installed: a small model, saved and loaded."""
    real = pytest.importorskip("diffusers")
    unet = real.UNet2DModel(
        sample_size=8,
        block_out_channels=(8, 8),
        down_block_types=("DownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "UpBlock2D"),
        layers_per_block=1,
        norm_num_groups=4,
    )
    unet.save_pretrained(tmp_path / "unet")
    real.DDPMScheduler().save_pretrained(tmp_path / "scheduler")
    model = DiffusersUNet(str(tmp_path))
    torch.testing.assert_close(model.signal, A.float(), rtol=1e-4, atol=1e-5)
    assert Diffusion(model, steps=2)(images(), streams()).shape == images().shape
