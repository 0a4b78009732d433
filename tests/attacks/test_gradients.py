"""Estimators: exact gradients, expectations, nesting, chunks, and what each evaluation costs."""

import pytest
import torch
from torch import Tensor, nn

from robusttrain.attacks import (
    Average,
    Backprop,
    CrossEntropy,
    Diverse,
    FiniteDifference,
    Loss,
    Smooth,
)
from robusttrain.core.at_once import copies_at_once
from robusttrain.core.errors import OptionError, UserError
from robusttrain.core.rng import Rng

WEIGHTS = torch.randn(3, 8, 8, generator=torch.Generator().manual_seed(9))


def linear_loss(images: Tensor, rng: Rng) -> Tensor:
    return (images * WEIGHTS).sum(dim=(1, 2, 3))


def quadratic_loss(images: Tensor, rng: Rng) -> Tensor:
    return (images**2 * WEIGHTS).sum(dim=(1, 2, 3))


def cubic_loss(images: Tensor, rng: Rng) -> Tensor:
    return (images**3 * WEIGHTS).sum(dim=(1, 2, 3))


def scaled_loss(images: Tensor, rng: Rng) -> Tensor:
    """Random: a linear loss times a uniform number in [0, 1)."""
    return linear_loss(images, rng) * rng.uniform(())


class Watched:
    """A loss that keeps what it was called with."""

    def __init__(self, loss) -> None:
        self.loss, self.images, self.keys = loss, [], []

    def __call__(self, images: Tensor, rng: Rng) -> Tensor:
        assert len(images) == len(rng)
        self.images.append(images.detach().clone())
        self.keys += rng.keys.tolist()
        return self.loss(images, rng)


def close(one: Tensor, other: Tensor, tolerance: float = 1e-5) -> None:
    torch.testing.assert_close(one, other, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize(
    ("loss_fn", "gradient"),
    [(linear_loss, lambda x: WEIGHTS.expand_as(x)), (quadratic_loss, lambda x: 2 * x * WEIGHTS)],
    ids=["linear", "quadratic"],
)
def test_backprop_is_the_analytic_gradient(loss_fn, gradient, images, streams):
    x = images()
    loss, found = Backprop()(loss_fn, x, streams())
    close(found, gradient(x), 1e-6)
    close(loss, loss_fn(x, streams()), 1e-6)
    assert loss.shape == (4,)
    assert not found.requires_grad
    assert not loss.requires_grad
    assert not x.requires_grad


ESTIMATORS = [
    Backprop(),
    Average(3),
    Smooth(3, 0.1),
    Diverse(0.5),
    Average(2, Smooth(2, 0.1)),
    Smooth(2, 0.1, Average(3)),
    Diverse(0.7, inner=Average(2)),
    Average(2, Diverse(0.7)),
]


@pytest.mark.parametrize("estimator", ESTIMATORS, ids=str)
def test_an_images_gradient_does_not_depend_on_its_batch(
    estimator, curved, random_linear, images, streams
):
    for model in (curved(), random_linear()):
        x, labels = images(8), torch.arange(8) % 3
        loss, gradient = estimator(Loss(model, CrossEntropy(), labels), x, streams(8))
        assert loss.shape == (8,)
        assert gradient.shape == x.shape
        for number in (0, 5):
            part = slice(number, number + 1)
            alone = estimator(Loss(model, CrossEntropy(), labels[part]), x[part], streams(8)[part])
            close(alone[0], loss[part], 1e-6)
            close(alone[1], gradient[part], 1e-6)


@pytest.mark.parametrize("estimator", ESTIMATORS, ids=str)
def test_evaluations_are_those_that_the_model_sees(estimator, curved, counting, images, streams):
    model = counting(curved())
    estimator(Loss(model, CrossEntropy(), torch.zeros(4, dtype=torch.int64)), images(), streams())
    assert model.gradients == 4 * estimator.evaluations
    assert model.queries == 0


def test_average_converges_to_the_expectation(images, streams):
    x, errors = images(), []
    for draws in (4, 4000):
        loss, gradient = Average(draws)(scaled_loss, x, streams())
        errors.append((gradient / WEIGHTS - 0.5).abs().max().item())
    assert errors[1] < 5 * (1 / 12 / 4000) ** 0.5 < errors[0]
    close(loss, 0.5 * linear_loss(x, streams()), 0.05)


def test_average_of_one_draw_is_that_draw(images, streams):
    loss, gradient = Average(1)(scaled_loss, images(), streams())
    expected = Backprop()(scaled_loss, images(), streams().fold(0))
    close(loss, expected[0], 1e-6)
    close(gradient, expected[1], 1e-6)


@pytest.mark.parametrize("chunk", [1, 2, 3, 7, 100])
@pytest.mark.parametrize("estimator", [Average, Smooth])
def test_the_chunk_changes_nothing_but_the_batch(estimator, chunk, images, streams):
    def loss_fn(images: Tensor, rng: Rng) -> Tensor:
        return scaled_loss(images**2, rng)

    watched = Watched(loss_fn)
    loss, gradient = estimator(7, chunk=chunk)(watched, images(), streams())
    expected = estimator(7)(loss_fn, images(), streams())
    close(loss, expected[0], 1e-6)
    close(gradient, expected[1], 1e-6)
    assert max(len(batch) for batch in watched.images) == 4 * min(chunk, 7)
    assert len(set(watched.keys)) == 28


@pytest.mark.parametrize("estimator", [Average, Smooth])
def test_the_default_chunk_holds_20_copies_and_256_images(estimator, images, streams):
    """A hundred draws took 4.5 times the memory of twenty for one image, 1.6 times for eight."""
    for batch, sizes in ((2, [40, 40, 10]), (100, [200] * 22 + [100])):
        watched = Watched(linear_loss)
        estimator(45)(watched, images(batch), streams(batch))
        assert [len(batch) for batch in watched.images] == sizes
        assert estimator(45).stacked(batch, 3 * 8 * 8) * batch == sizes[0]


def test_copies_that_are_not_differentiated_fill_batches_of_256_images(images, streams):
    for estimator in (FiniteDifference(200), Average(200, FiniteDifference(1))):
        watched = Watched(linear_loss)
        estimator(watched, images(2), streams(2))
        assert max(len(batch) for batch in watched.images) == 256
        assert estimator.stacked(2, 3 * 8 * 8) == 128


@pytest.mark.parametrize(
    ("side", "batch", "copies"),
    [(32, 2, 128), (64, 2, 128), (224, 2, 10), (224, 20, 1), (512, 1, 4)],
)
def test_the_default_chunk_holds_fewer_large_images(side, batch, copies):
    """256 images of 224 pixels took 24 GiB in a small EfficientNet."""
    assert copies_at_once(None, batch, 3 * side**2) == copies
    assert copies_at_once(7, batch, 3 * side**2) == 7


def noises(watched: Watched, images: Tensor) -> int:
    return len(torch.cat(watched.images).sub(images).flatten(1).unique(dim=0))


def test_the_order_of_nesting_says_whether_the_noise_is_shared(images, streams):
    x = images(1)
    fresh, shared = Watched(linear_loss), Watched(linear_loss)
    Average(3, Smooth(5, 0.1))(fresh, x, streams(1))
    Smooth(5, 0.1, Average(3))(shared, x, streams(1))
    assert noises(fresh, x) == 15
    assert noises(shared, x) == 5
    # The model's own randomness is drawn anew for each evaluation either way.
    assert len(set(fresh.keys)) == len(set(shared.keys)) == 15


def test_smooth_adds_normal_noise_of_its_sigma(images, streams):
    watched = Watched(linear_loss)
    Smooth(50, 0.1)(watched, images(), streams())
    noise = (torch.cat(watched.images).view(50, 4, 3, 8, 8) - images()).flatten().double() / 0.1
    assert abs(noise.mean()) < 5 / len(noise) ** 0.5
    assert abs((noise**2).mean() - 1) < 5 * (2 / len(noise)) ** 0.5
    assert abs((noise**4).mean() - 3) < 5 * (96 / len(noise)) ** 0.5


def test_smooth_on_linear_and_quadratic_losses(images, streams):
    close(Smooth(5, 0.3)(linear_loss, images(), streams())[1], WEIGHTS.expand(4, 3, 8, 8), 1e-6)
    # grad of w (x + xi)^2 is 2 w (x + xi): the mean is off by 2 w times the mean of the noise.
    gradient = Smooth(2000, 0.1)(quadratic_loss, images(), streams())[1]
    assert ((gradient / (2 * WEIGHTS)) - images()).abs().max() < 5.5 * 0.1 / 2000**0.5
    # grad of w (x + xi)^3 is 3 w (x^2 + sigma^2) in expectation: this is not the gradient at x.
    shift = (
        Smooth(2000, 0.5)(cubic_loss, images(), streams())[1] / (3 * WEIGHTS) - images() ** 2
    ).mean()
    assert abs(shift - 0.25) < 0.02


@pytest.mark.parametrize("estimator", [Smooth(4, 0.0), Diverse(0.0), Average(4)], ids=str)
def test_without_noise_it_is_backprop(estimator, curved, images, streams):
    loss_fn = Loss(curved(), CrossEntropy(), torch.arange(4))
    loss, gradient = estimator(loss_fn, images(), streams())
    expected = Backprop()(loss_fn, images(), streams())
    close(loss, expected[0], 1e-6)
    close(gradient, expected[1], 1e-6)


def test_diverse_transforms_as_many_images_as_it_says(images):
    x, rng = images(400), Rng.for_images(0, torch.arange(400))
    for probability in (0.0, 0.3, 1.0):
        transformed = Diverse(probability, 0.5).transform(x, rng)
        changed = ((transformed - x).abs().amax(dim=(1, 2, 3)) > 1e-3).sum().item()
        assert (
            abs(changed - 400 * probability) <= 5 * (400 * probability * (1 - probability)) ** 0.5
        )
        assert transformed.shape == x.shape


def test_diverse_draws_every_size_and_place():
    ones = torch.ones(4000, 1, 6, 6)
    transformed = Diverse(1.0, smallest=4 / 6).transform(
        ones, Rng.for_images(0, torch.arange(4000))
    )
    patterns = {
        (int(image[0].any(0).sum()), *image[0].nonzero().amin(dim=0).tolist())
        for image in transformed
    }
    assert patterns == {
        (side, top, left) for side in (4, 5) for top in range(7 - side) for left in range(7 - side)
    }


def test_diverse_leaves_a_pixel_of_every_image():
    ones = torch.ones(400, 1, 6, 6)
    transformed = Diverse(1.0, smallest=0.01).transform(ones, Rng.for_images(0, torch.arange(400)))
    assert transformed.flatten(1).any(dim=1).all()


@pytest.mark.parametrize("smallest", [0.01, 299 / 330, 1.0])
def test_diverse_leaves_images_of_one_pixel_as_they_are(smallest, streams):
    x = torch.rand(4, 3, 1, 1, generator=torch.Generator().manual_seed(0))
    assert torch.equal(Diverse(1.0, smallest).transform(x, streams()), x)


def test_diverse_leaves_images_that_are_not_square_as_they_are(images, streams):
    x = images()[..., :5]
    try:
        transformed = Diverse(0.0).transform(x, streams())
    except UserError:
        return  # refused in one line: as good
    assert transformed.shape == x.shape
    close(transformed, x, 1e-6)


@pytest.mark.parametrize("mode", ["bilinear", "nearest"])
def test_diverse_is_the_gradient_behind_the_transformation(mode, images, streams):
    estimator, x = Diverse(1.0, 0.6, mode), images().requires_grad_()
    loss = linear_loss(estimator.transform(x, streams().fold("diverse")), streams())
    (expected,) = torch.autograd.grad(loss.sum(), x)
    gradient = estimator(linear_loss, images(), streams())[1]
    close(gradient, expected, 1e-6)
    assert (gradient - WEIGHTS).abs().max() > 0.1


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (Average(2), Average(3)),
        (Average(2), Average(2, Diverse(1.0))),
        (Smooth(2), Smooth(3)),
        (Smooth(2, 0.1), Smooth(2, 0.2)),
        (Smooth(2), Smooth(2, inner=Diverse(1.0))),
        (Diverse(0.1), Diverse(1.0)),
        (Diverse(1.0, 0.5), Diverse(1.0, 0.9)),
        (Diverse(1.0, mode="bilinear"), Diverse(1.0, mode="nearest")),
        (Diverse(1.0), Diverse(1.0, inner=Smooth(2))),
    ],
    ids=str,
)
def test_every_option_changes_the_gradient(one, other, images, streams):
    def loss_fn(images: Tensor, rng: Rng) -> Tensor:
        return scaled_loss(images**2, rng)

    gradients = [estimator(loss_fn, images(), streams())[1] for estimator in (one, other)]
    assert (gradients[0] - gradients[1]).abs().max() > 1e-3


class Detached(nn.Module):
    def forward(self, images: Tensor) -> Tensor:
        return images.detach().flatten(1)[:, :3]


class Rounded(nn.Module):
    """Its parameters need a gradient, so that the loss has one: but not with respect to the
    image.
    """

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(192, 3)

    def forward(self, images: Tensor) -> Tensor:
        return self.layer((images > 0.5).float().flatten(1))


@pytest.mark.parametrize("model", [Detached(), Rounded()], ids=["detached", "rounded"])
@pytest.mark.parametrize("estimator", [Backprop(), Average(2)], ids=str)
def test_no_gradient_to_follow_is_said_in_one_line(estimator, model, images, streams):
    with pytest.raises(UserError, match="does not depend differentiably") as caught:
        estimator(
            Loss(model, CrossEntropy(), torch.zeros(4, dtype=torch.int64)), images(), streams()
        )
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("make", "named"),
    [
        (lambda: Average(0), "draws"),
        (lambda: Average(1, chunk=0), "chunk"),
        (lambda: Smooth(0), "samples"),
        (lambda: Smooth(1, -0.1), "sigma"),
        (lambda: Smooth(1, chunk=0), "chunk"),
        (lambda: Diverse(1.1), "probability"),
        (lambda: Diverse(-0.1), "probability"),
        (lambda: Diverse(smallest=0.0), "smallest"),
        (lambda: Diverse(mode="bicubic"), "mode"),
    ],
)
def test_impossible_options_are_named(make, named):
    with pytest.raises(OptionError, match=rf"^{named} = "):
        make()
