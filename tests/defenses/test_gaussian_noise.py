"""Gaussian noise: its draws, what it declares, and that training behind it augments with it."""

import pytest
import torch
import torch.nn.functional as F

from robusttrain.core.errors import OptionError
from robusttrain.core.rng import Rng
from robusttrain.data import Batch
from robusttrain.defenses import Chain, CropRescale, GaussianNoise, MedianSmoothing, Vote
from robusttrain.models.defended import DefendedClassifier
from robusttrain.training import RobustTraining


def test_the_noise_is_normal_and_belongs_to_the_image(images, streams):
    x = images(4, 3, 32)
    noise = GaussianNoise(0.5)(x, streams(4)) - x
    # 12,288 numbers: the mean is 0 within 0.0045, one standard deviation, and sigma within 0.0032.
    assert noise.mean().abs() < 0.02
    assert abs(noise.std() - 0.5) < 0.015
    assert (noise.abs() < 0.5).double().mean().item() == pytest.approx(0.6827, abs=0.02)
    expected = 0.5 * streams(4).fold("defense").normal(x.shape[1:])
    torch.testing.assert_close(noise, expected, atol=1e-6, rtol=0)
    doubled = GaussianNoise(1.0)(x, streams(4)) - x
    torch.testing.assert_close(doubled, 2 * noise, atol=1e-6, rtol=0)


def test_without_noise_clipping_leaves_black_and_white_pixels_their_gradient():
    x = torch.tensor([-0.1, 0.0, 0.5, 1.0, 1.1]).view(1, 1, 1, 5).requires_grad_()
    clipped = GaussianNoise(0.0, clip=True)(x)
    assert clipped.flatten().tolist() == [0, 0, 0.5, 1, 1]
    (gradient,) = torch.autograd.grad(clipped.sum(), x)
    assert gradient.flatten().tolist() == [0, 1, 1, 1, 0]


def test_nothing_is_clipped_unless_asked(images, streams):
    x = images(2)
    free, clipped = (GaussianNoise(1.0, clip)(x, streams(2)) for clip in (False, True))
    assert free.min() < 0
    assert free.max() > 1
    assert torch.equal(clipped, free.clamp(0, 1))
    assert torch.equal(GaussianNoise(0.0)(x, streams(2)), x)


def test_what_it_declares(images):
    noise = GaussianNoise(0.3)
    assert (noise.random, noise.differentiable, noise.certified_sigma) == (True, True, 0.3)
    assert not GaussianNoise(0.0).random
    assert GaussianNoise(0.0).certified_sigma is None
    crops, median = CropRescale(0.5), MedianSmoothing()
    assert Vote(noise, 5, "majority").certified_sigma == 0.3
    assert Chain([Vote(noise, 5, "majority"), median]).certified_sigma == 0.3
    assert Vote(Chain([noise, crops]), 5, "majority").certified_sigma == 0.3
    # The class of the largest mean is another one than that of most draws, now and then.
    assert Vote(noise, 5).certified_sigma is None
    for other in (median, Chain([median, noise]), Vote(Chain([crops, noise]), 5, "majority")):
        assert other.certified_sigma is None
    with pytest.raises(OptionError, match="sigma = -1"):
        GaussianNoise(-1)


def test_a_single_draw_takes_the_vote_on_the_noise_away_and_no_other(convnet, images, streams):
    noise, crops, model = GaussianNoise(0.3), CropRescale(0.5), convnet()
    single = Chain([Vote(noise, 5), MedianSmoothing()]).single_draw()
    assert [type(part) for part in single.parts] == [GaussianNoise, MedianSmoothing]
    assert not single.votes
    assert Vote(noise, 5).single_draw() is noise
    behind = Chain([noise, Vote(crops, 5)])
    assert behind.single_draw().votes  # a vote behind the noise is a part of what is smoothed
    torch.testing.assert_close(
        DefendedClassifier(behind.single_draw(), model).eval()(images(), streams()),
        DefendedClassifier(behind, model).eval()(images(), streams()),
    )


def test_training_behind_it_is_noise_augmentation(convnet, images):
    """Cohen et al. 2019, section 3.4: cross entropy on x + sigma N(0, 1), new in every epoch."""
    model, x, labels, index = convnet(), images(4), torch.tensor([0, 1, 2, 0]), torch.arange(4)
    noise, batch = GaussianNoise(0.4), Batch(x, labels, index)
    for defense in (noise, Vote(noise, 7)):
        target = DefendedClassifier(defense, model).train()
        model.eval()  # no dropout
        training = RobustTraining(target, num_classes=3)
        seen = []
        for epoch in (0, 1):
            rng = Rng.for_images(0, index).fold("train").fold(epoch)
            losses, _ = training.losses(batch, 0, epoch)
            noisy = x + 0.4 * rng.fold("defense").normal(x.shape[1:])
            expected = F.cross_entropy(model(noisy), labels, reduction="none")
            torch.testing.assert_close(losses, expected)
            seen.append(losses.detach())
        assert ((seen[0] - seen[1]).abs() > 1e-4).all()
