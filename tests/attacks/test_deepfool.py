"""DeepFool: exact on affine models, and no worse than torchattacks' and Foolbox's."""

import math

import pytest
import torch
from torch import Tensor, nn

from robusttrain.attacks import L2, DeepFool, Linf
from robusttrain.attacks.algorithms.deepfool import BEYOND
from robusttrain.core.errors import OptionError, UserError

WIDE = L2(50.0)


def distances(model, images: Tensor, labels: Tensor) -> Tensor:
    """(B, K): how far an affine model's boundaries to all other classes are; infinite for the
    label's own.
    """
    z, w = model(images).detach(), model.weight.detach()
    away = (z - z.gather(1, labels[:, None])).abs() / (w - w[labels][:, None]).norm(dim=2)
    return away.scatter(1, labels[:, None], torch.inf)


def centred(model):
    """The affine model with its boundaries near the grey image, so that the box is not met on the
    way there.
    """
    model.bias.data -= model.weight.data.sum(1) / 2
    return model


def right(model, images: Tensor) -> Tensor:
    return model(images).argmax(1)


def test_a_binary_affine_model_takes_one_step_to_the_boundary_and_its_overshoot(
    linear, images, streams, counting
):
    model, x = counting(centred(linear(classes=2))), images()
    y = right(model.model, x)
    nearest = distances(model.model, x, y).amin(1)
    for overshoot in (0.0, 0.02, 0.5):
        model.gradients = 0
        found = DeepFool(overshoot=overshoot, threat=WIDE)(model, x, y, streams())
        expected = (1 + overshoot) * (nearest + BEYOND)
        torch.testing.assert_close(WIDE.distance(found, x), expected, rtol=1e-4, atol=1e-6)
        assert (right(model.model, found) != y).all()
        assert model.gradients == 4


def six(linear):
    """Six classes, three of them with boundaries that are much nearer than their logits say."""
    model = linear(classes=6, seed=3)
    model.weight.data[:3] *= 4
    return centred(model)


def test_the_nearest_of_several_affine_boundaries(linear, images, streams):
    """The nearest boundary leads to a class that need not be the second likeliest."""
    model, x = six(linear), images(16)
    y = right(model, x)
    away = distances(model, x, y)
    found = DeepFool(threat=WIDE)(model, x, y, streams(16))
    expected = 1.02 * (away.amin(1) + BEYOND)
    torch.testing.assert_close(WIDE.distance(found, x), expected, rtol=1e-4, atol=1e-6)
    assert (right(model, found) != y).all()
    second = model(x).scatter(1, y[:, None], -torch.inf).argmax(1)
    assert (away.argmin(1) != second).any()


def test_only_the_likeliest_classes_are_looked_at(linear, images, streams):
    model, x = six(linear), images(16)
    y = right(model, x)
    away = distances(model, x, y)
    second = model(x).scatter(1, y[:, None], -torch.inf).argmax(1)
    found = DeepFool(classes=2, threat=WIDE)(model, x, y, streams(16))
    expected = 1.02 * (away.gather(1, second[:, None]).squeeze(1) + BEYOND)
    torch.testing.assert_close(WIDE.distance(found, x), expected, rtol=1e-4, atol=1e-6)


def test_the_box_is_never_left_and_more_steps_go_round_it(linear, streams):
    """Half of the pixels are at the bounds: a step loses what is clipped, the next ones make up for
    it.
    """
    x = (2 * torch.rand(8, 3, 8, 8, generator=torch.Generator().manual_seed(3)) - 0.5).clamp(0, 1)
    model = linear(classes=2)
    y = right(model, x)
    one, many = (DeepFool(steps=steps, threat=WIDE)(model, x, y, streams(8)) for steps in (1, 50))
    for found in (one, many):
        assert found.min() >= 0
        assert found.max() <= 1
    assert (right(model, one) == y).any()
    assert (right(model, many) != y).all()


def test_what_is_too_far_is_projected_and_what_is_near_stays(linear, images, streams):
    model, x = linear(classes=2), images(8)
    y = right(model, x)
    free = DeepFool(threat=WIDE)(model, x, y, streams(8))
    far = WIDE.distance(free, x)
    threat = L2(far.median().item())
    found = DeepFool(threat=threat)(model, x, y, streams(8))
    near = far <= threat.epsilon
    assert 0 < near.sum() < 8
    assert torch.equal(found[near], free[near])
    assert (threat.distance(found, x) <= threat.epsilon + 1e-6).all()
    assert (right(model, found) != y).equal(near)


def test_an_image_that_is_wrong_already_comes_back_as_it_was(curved, images, streams):
    model, x = curved(), images(8)
    y = right(model, x)
    y[::2] = (y[::2] + 1) % 4
    found = DeepFool(threat=WIDE)(model, x, y, streams(8))
    assert torch.equal(found[::2], x[::2])
    assert (WIDE.distance(found, x)[1::2] > 0).all()


def test_images_leave_the_batch_when_they_are_done(patterns, counting, streams):
    model, x, y = patterns[0], patterns[1][:32], patterns[2][:32]
    counted = counting(model)
    DeepFool(threat=WIDE)(counted, x, y, streams(32))
    together, alone = (counted.gradients, counted.queries), [0, 0]
    for i in range(32):
        counted.gradients = counted.queries = 0
        DeepFool(threat=WIDE)(counted, x[i : i + 1], y[i : i + 1], streams(32)[i : i + 1])
        alone = [alone[0] + counted.gradients, alone[1] + counted.queries]
        limit = DeepFool().cost()
        assert counted.gradients <= limit.gradients
        assert counted.queries <= limit.queries
    assert list(together) == alone
    assert together[0] < 32 * 5


def test_a_batch_is_as_its_images_alone_and_one_seed_is_one_result(
    patterns, random_linear, images, streams
):
    cases = [(patterns[0], patterns[1][:8], patterns[2][:8])]
    noisy = random_linear(4)
    cases.append((noisy, images(8), noisy(images(8), streams(8, seed=9)).argmax(1)))
    for model, x, y in cases:
        whole, order = DeepFool(threat=WIDE)(model, x, y, streams(8)), torch.tensor([6, 0, 3])
        assert torch.equal(DeepFool(threat=WIDE)(model, x, y, streams(8)), whole)
        part = DeepFool(threat=WIDE)(model, x[order], y[order], streams(8)[order])
        torch.testing.assert_close(part, whole[order], rtol=0, atol=1e-5)


def test_most_draws_of_a_random_model_are_wrong(random_linear, images, streams):
    """And one lucky draw is not enough: with a single vote, some images are left where most draws
    are right.
    """
    model, x = random_linear(4), images(16)
    logits = torch.stack([model(x, streams(16, seed=seed)) for seed in range(20)]).mean(0)
    y = logits.argmax(1)
    shares = []
    for votes in (1, 25):
        found = DeepFool(votes=votes, threat=WIDE)(model, x, y, streams(16))
        draws = [model(found, streams(16, seed=100 + seed)).argmax(1) != y for seed in range(50)]
        shares.append(torch.stack(draws).float().mean(0))
    assert (shares[1] > 0.3).all()
    assert shares[1].mean() > shares[0].mean()


def test_the_model_is_left_as_it_was(convnet, images, streams):
    model = convnet(4).train()
    model[1].eval()
    modes = [part.training for part in model.modules()]
    expected = right(convnet(4), images())
    with torch.no_grad():
        found = DeepFool(threat=WIDE)(model, images(), expected, streams())
    assert torch.equal(found, DeepFool(threat=WIDE)(convnet(4), images(), expected, streams()))
    assert [part.training for part in model.modules()] == modes
    assert all(
        parameter.requires_grad and parameter.grad is None for parameter in model.parameters()
    )


class Flat(nn.Module):
    """Knows no gradient for images with a black corner, and answers NaN for those with a white
    one.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, images):
        corner = images[:, 0, 0, 0].view(-1, 1, 1, 1)
        return self.model(
            torch.where(corner == 0, images.detach(), images)
            * torch.where(corner == 1, torch.nan, 1.0)
        )


def test_images_without_a_gradient_stay_and_hold_nobody_up(linear, images, streams):
    x, model = images(), linear(classes=2)
    x[1, :, 0, 0], x[2, :, 0, 0] = 0, 1
    y = right(model, x)
    found = DeepFool(threat=WIDE)(Flat(model), x, y, streams())
    assert torch.equal(found[1:3], x[1:3])
    assert torch.equal(found[[0, 3]], DeepFool(threat=WIDE)(model, x, y, streams())[[0, 3]])


def test_a_model_without_any_gradient_is_one_line(images, streams):
    class Detached(nn.Module):
        def forward(self, images):
            return images.detach().flatten(1)[:, :4]

    y = right(Detached(), images())
    with pytest.raises(UserError, match="does not depend differentiably"):
        DeepFool(threat=WIDE)(Detached(), images(), y, streams())


def test_no_images_give_no_images(curved, images, streams):
    empty = DeepFool()(curved(), images()[:0], torch.zeros(0, dtype=torch.int64), streams()[:0])
    assert empty.shape == (0, 3, 8, 8)


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("steps", 0),
        ("classes", 1),
        ("overshoot", -0.1),
        ("overshoot", math.nan),
        ("votes", 0),
        ("threat", Linf()),
    ],
)
def test_impossible_options_are_named(option, value):
    with pytest.raises(OptionError, match=rf"^{option} = "):
        DeepFool(**{option: value})


def test_the_same_images_as_foolboxs(patterns, streams):
    foolbox = pytest.importorskip("foolbox")
    model, x, y = patterns[0], patterns[1][:48], patterns[2][:48]
    bounded = foolbox.PyTorchModel(model, bounds=(0, 1), device="cpu")
    theirs = foolbox.attacks.L2DeepFoolAttack()(bounded, x, y, epsilons=None)[1]
    found = DeepFool(threat=WIDE)(model, x, y, streams(48))
    assert (right(model, found) != y).all()
    torch.testing.assert_close(found, theirs, rtol=0, atol=1e-4)


def test_as_near_as_torchattacks_and_never_short_of_the_boundary(patterns, streams):
    """Theirs overshoot each step for itself, and so end closer to the boundary: some on the wrong
    side of it.
    """
    torchattacks = pytest.importorskip("torchattacks")
    model, x, y = patterns[0], patterns[1][:12], patterns[2][:12]
    theirs = torchattacks.DeepFool(model, steps=10)(x, y)
    found = DeepFool(steps=10, threat=WIDE)(model, x, y, streams(12))
    assert (right(model, found) != y).all()
    assert (WIDE.distance(found, x) <= 1.01 * WIDE.distance(theirs, x)).all()
