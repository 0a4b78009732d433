"""Fast copies: the same logits and gradients, the original untouched, and a way back where folding
is not valid.
"""

import copy

import pytest
import torch
from timm.layers import BatchNormAct2d, Conv2dSame
from torch import Tensor, nn

from robusttrain.models import CifarResNet, TimmClassifier, VGGSmall, fast_copy


def warmed(model: nn.Module) -> nn.Module:
    """Batch norms that are far from the identity."""
    rng = torch.Generator().manual_seed(1)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            for tensor, low, high in (
                (module.weight, 0.5, 1.5),
                (module.bias, -0.3, 0.3),
                (module.running_mean, -0.3, 0.3),
                (module.running_var, 0.5, 2.0),
            ):
                tensor.data.copy_(low + (high - low) * torch.rand(tensor.shape, generator=rng))
    return model.eval()


def images(size: int = 16, seed: int = 2) -> Tensor:
    return torch.rand(3, 3, size, size, generator=torch.Generator().manual_seed(seed))


def build(name: str) -> nn.Module:
    torch.manual_seed(0)
    if name == "vgg":
        return warmed(VGGSmall(image_size=16))
    if name == "resnet":
        return warmed(CifarResNet(widths=(8, 16), blocks=1))
    return warmed(TimmClassifier(name, image_size=16))


def derivatives(model: nn.Module, x: Tensor) -> tuple[Tensor, Tensor]:
    """The gradient of a loss with respect to the images, and that of the gradient's squared
    norm.
    """
    x = x.clone().requires_grad_()
    (first,) = torch.autograd.grad(model(x).logsumexp(1).sum(), x, create_graph=True)
    (second,) = torch.autograd.grad(first.square().sum(), x)
    return first.detach(), second


# test_efficientnet: timm's own small test model; its batch norms have their activations inside.
@pytest.mark.parametrize(("name", "norms"), [("vgg", 6), ("resnet", 6), ("test_efficientnet", 13)])
def test_same_logits_and_derivatives_with_batch_norm_folded(name, norms):
    model, x = build(name), images()
    fast = fast_copy(model)
    assert fast.folded == norms
    assert not any(isinstance(module, nn.BatchNorm2d) for module in fast.modules())
    torch.testing.assert_close(fast(x), model(x), rtol=1e-4, atol=1e-4)
    for ours, expected in zip(derivatives(fast, x), derivatives(model, x), strict=True):
        assert (ours - expected).abs().max() <= 1e-3 * expected.abs().max()


def test_timm_convolutions_that_pad_by_themselves_are_folded():
    torch.manual_seed(0)
    model = warmed(nn.Sequential(Conv2dSame(3, 4, 3, stride=2), BatchNormAct2d(4)))
    fast = fast_copy(model, example=images(9))
    assert fast.folded == 1
    torch.testing.assert_close(fast(images(9)), model(images(9)), rtol=1e-5, atol=1e-5)


def test_pooling_goes_before_relu():
    layers = [type(layer) for layer in fast_copy(build("vgg")).network.features[:4]]
    assert layers == [nn.Conv2d, nn.Identity, nn.MaxPool2d, nn.ReLU]


@pytest.mark.parametrize("name", ["vgg", "resnet"])
def test_bfloat16_casts_weights_and_returns_float32(name):
    model, x = build(name), images()
    fast = fast_copy(model, torch.bfloat16)
    assert not fast.autocast
    assert {parameter.dtype for parameter in fast.parameters()} == {torch.bfloat16}
    logits, expected = fast(x), model(x)
    assert logits.dtype == torch.float32
    # 8 bits of mantissa, not float32
    assert 0 < (logits - expected).abs().max() <= 0.05 * expected.abs().max()
    ours, exact = derivatives(fast, x)[0], derivatives(model, x)[0]
    assert ours.dtype == torch.float32
    assert torch.cosine_similarity(ours.flatten(1), exact.flatten(1)).min() > 0.9


def test_the_original_is_left_as_it_is():
    model = build("resnet").train()
    model.stages[0].eval()  # frozen batch norm
    model.classifier.weight.requires_grad_(False)
    model.stem[0].weight.grad = torch.ones_like(model.stem[0].weight)

    def state(module: nn.Module) -> list:
        return [
            [part.training for part in module.modules()],
            [(p.requires_grad, p.stride(), p.dtype, p.grad is None) for p in module.parameters()],
            [type(part) for part in module.modules()],
        ]

    before, weights, random = state(model), copy.deepcopy(model.state_dict()), torch.get_rng_state()
    fast = fast_copy(model, torch.bfloat16)
    derivatives(fast, images())
    assert state(model) == before
    assert all(torch.equal(tensor, weights[name]) for name, tensor in model.state_dict().items())
    assert torch.equal(torch.get_rng_state(), random)
    assert not any(parameter.requires_grad for parameter in fast.parameters())
    assert all(parameter.grad is None for parameter in fast.parameters())


def test_it_stays_in_evaluation_mode_and_knows_its_shape():
    fast = fast_copy(VGGSmall().train())
    assert not any(module.training for module in fast.train().modules())
    assert (fast.num_classes, fast.in_channels, fast.image_size) == (10, 3, 32)


def test_made_in_inference_mode_it_can_still_be_attacked():
    model = build("vgg")
    with torch.inference_mode():
        fast = fast_copy(model)
    assert derivatives(fast, images())[0].abs().max() > 0


class Tiny(nn.Module):
    """A convolution and a batch norm, for subclasses to use in other ways."""

    in_channels, image_size = 3, 8

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.conv(x)).mean((2, 3))


class TwoUsers(Tiny):
    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x)
        return (self.norm(x) + x).mean((2, 3))


class CalledTwice(Tiny):
    def forward(self, x: Tensor) -> Tensor:
        return (self.norm(self.conv(x)) * self.norm(self.conv(1 - x))).mean((2, 3))


class WeightUsedElsewhere(Tiny):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) + torch.conv2d(x, self.conv.weight).mean((2, 3))


class NormFirst(Tiny):
    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(3)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(self.norm(x)).mean((2, 3))


@pytest.mark.parametrize("kind", [TwoUsers, CalledTwice, WeightUsedElsewhere, NormFirst])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_where_folding_is_not_valid_nothing_is_folded(kind, dtype):
    torch.manual_seed(0)
    model, x = warmed(kind()), images(8)
    fast = fast_copy(model, dtype)
    assert fast.folded == 0
    assert fast.autocast == (dtype == torch.bfloat16)
    assert {parameter.dtype for parameter in fast.parameters()} == {torch.float32}
    assert fast(x).dtype == torch.float32
    tolerance = 1e-5 if dtype == torch.float32 else 3e-2
    torch.testing.assert_close(fast(x), model(x), rtol=tolerance, atol=tolerance)


def test_two_norms_in_one_model_fold_where_they_may():
    torch.manual_seed(0)
    model = warmed(
        nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.BatchNorm2d(4))
    )
    fast = fast_copy(model, example=images(8))
    assert fast.folded == 1
    torch.testing.assert_close(fast(images(8)), model(images(8)), rtol=1e-5, atol=1e-5)


def test_without_a_shape_to_check_nothing_is_folded():
    model = warmed(nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)))
    assert fast_copy(model).folded == 0


class Noisy(nn.Module):
    """Cannot be traced (looks at values), and draws random numbers."""

    in_channels, image_size = 3, 8

    def __init__(self) -> None:
        super().__init__()
        self.body = Tiny()

    def forward(self, x: Tensor) -> Tensor:
        if x.max() > 2:
            raise ValueError("not an image")
        return self.body(x + 0.1 * torch.rand(x.shape))


def test_children_of_what_cannot_be_traced_are_folded_and_random_draws_stay_random():
    model, x = warmed(Noisy()), images(8)
    fast = fast_copy(model)
    assert fast.folded == 1
    torch.manual_seed(5)
    expected = model(x)
    torch.manual_seed(5)
    torch.testing.assert_close(fast(x), expected, rtol=1e-5, atol=1e-5)
    assert not torch.equal(fast(x), fast(x))
    with pytest.raises(ValueError, match="not an image"):
        fast(x + 5)


def test_a_hooked_layer_is_left_alone_and_the_others_are_folded():
    torch.manual_seed(0)
    parts = (nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Conv2d(4, 4, 3), nn.BatchNorm2d(4))
    model, x = warmed(nn.Sequential(*parts)), images(8)
    model[0].register_forward_hook(lambda module, inputs, output: output * 2)
    fast = fast_copy(model, example=x)
    assert [type(layer) for layer in fast.network] == [
        nn.Conv2d,
        nn.BatchNorm2d,
        nn.Conv2d,
        nn.Identity,
    ]
    torch.testing.assert_close(fast(x), model(x), rtol=1e-5, atol=1e-5)


class Insists(Tiny):
    def forward(self, x: Tensor) -> Tensor:
        return torch.matmul(super().forward(x), torch.ones(4, 4))


def test_a_model_that_insists_on_float32_runs_under_autocast():
    model, x = warmed(Insists()), images(8)
    fast = fast_copy(model, torch.bfloat16)
    assert fast.autocast
    torch.testing.assert_close(fast(x), model(x), rtol=3e-2, atol=3e-2)


def test_synchronised_batch_norm_folds_as_any_other(convnet, images):
    """Its statistics are those of all processes in training alone."""
    plain = convnet()
    synchronised = nn.SyncBatchNorm.convert_sync_batchnorm(convnet()).eval()
    synchronised.in_channels = 3
    fast = fast_copy(synchronised)
    assert fast.folded == fast_copy(plain).folded == 2
    torch.testing.assert_close(fast(images()), plain(images()), rtol=1e-4, atol=1e-5)


class Rows(nn.Module):
    """Reads what a convolution gives as rows of pixels, as many networks for digits do."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, 4, 3, padding=1)
        self.classifier = nn.Linear(4 * 8 * 8, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(self.conv(x).view(len(x), -1))


@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_a_network_that_reads_rows_of_pixels(layout, channels, batch):
    """An image of one channel is contiguous and channels_last at once, and a convolution answers in
    the format that the strides of pixels and weights say.
    """
    torch.manual_seed(0)
    model, x = Rows(channels).eval(), torch.rand(batch, channels, 8, 8)
    expected, x = model(x), x.to(memory_format=layout).requires_grad_()
    fast = fast_copy(model)
    torch.testing.assert_close(fast(x), expected, rtol=1e-5, atol=1e-5)
    (gradient,) = torch.autograd.grad(fast(x).sum(), x)
    assert gradient.abs().sum() > 0
