"""Randomization layers: the patterns, their frequencies, and each image its own draw."""

from collections import Counter

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from robusttrain.core.errors import OptionError
from robusttrain.core.rng import Rng
from robusttrain.defenses import RandomResizePad


def pattern(image: Tensor) -> tuple[int, int, int]:
    """(size, top, left) of what is not padding; needs an image without black pixels."""
    rows, columns = (
        image.amax(dim=(0, 2)).nonzero().flatten(),
        image.amax(dim=(0, 1)).nonzero().flatten(),
    )
    assert len(rows) == len(columns) == int(rows[-1] - rows[0]) + 1
    return len(rows), int(rows[0]), int(columns[0])


class Scripted(Rng):
    """Answers each request for integers with the next of ``answers``, and keeps the bounds."""

    def __init__(self, answers: list[int]) -> None:
        super().__init__(torch.zeros(1, dtype=torch.int64))
        self.answers, self.bounds = list(answers), []

    def integers(self, shape, low, high):
        self.bounds.append((int(low), int(high)))
        return torch.tensor([self.answers.pop(0)])


def test_the_papers_layers_have_12528_patterns(images):
    defense, patterns = RandomResizePad(299, 331), 0
    for size in range(299, 331):
        rng = Scripted([size, 0, 0])
        assert defense.transform(images(1, 1, 4), rng).shape == (1, 1, 331, 331)
        sizes, top, left = rng.bounds
        assert sizes == (299, 331)
        patterns += (top[1] - top[0]) * (left[1] - left[0])
    assert patterns == 12528


@pytest.mark.parametrize("mode", ["bilinear", "nearest"])
def test_all_patterns_occur_as_often_as_they_should(mode):
    low, canvas, count = 3, 5, 6000
    defended = RandomResizePad(low, canvas, mode)(
        torch.ones(count, 1, 4, 4), Rng.for_images(0, torch.arange(count))
    )
    seen = Counter(pattern(image) for image in defended)
    places = {size: canvas - size + 1 for size in range(low, canvas)}
    every = {
        (size, top, left) for size, n in places.items() for top in range(n) for left in range(n)
    }
    assert set(seen) == every
    assert len(every) == 13
    for (size, _, _), times in seen.items():
        chance = 1 / len(places) / places[size] ** 2
        assert abs(times - count * chance) < 5 * (count * chance) ** 0.5


@pytest.mark.parametrize("mode", ["bilinear", "nearest"])
@pytest.mark.parametrize(("low", "canvas"), [(8, 11), (3, 6), (12, 20)])
def test_equals_interpolate_and_pad(low, canvas, mode, images, streams):
    x = images(12)
    results = RandomResizePad(low, canvas, mode)(x, streams(12))
    assert len({pattern(result) for result in results}) > 3
    options = {"align_corners": False} if mode == "bilinear" else {}
    for image, result in zip(x, results, strict=True):
        size, top, left = pattern(result)
        resized = F.interpolate(image[None], size=(size, size), mode=mode, **options)[0]
        expected = F.pad(resized, (left, canvas - size - left, top, canvas - size - top))
        torch.testing.assert_close(result, expected, rtol=0, atol=1e-5)


def test_a_draw_belongs_to_its_image(images, streams):
    defense, x = RandomResizePad(8, 11), images(8)
    whole, order = defense(x, streams(8)), torch.tensor([6, 1])
    torch.testing.assert_close(
        defense(x[order], streams(8)[order]), whole[order], rtol=0, atol=1e-6
    )
    assert not torch.equal(defense(x, streams(8, seed=1)), whole)


def test_the_callers_streams_are_left_as_they_are(images, streams):
    defense, rng = RandomResizePad(8, 11), streams()
    assert torch.equal(defense(images(), rng), defense(images(), rng))
    assert rng.position == 0


def test_without_streams_torchs_global_seed_decides(images):
    defense, results = RandomResizePad(8, 11), []
    for seed in (3, 3, 4):
        torch.manual_seed(seed)
        results.append(defense(images()))
    assert torch.equal(results[0], results[1])
    assert not torch.equal(results[0], results[2])


def test_it_is_random_and_differentiable(images, streams):
    defense, x = RandomResizePad(8, 11), images().requires_grad_()
    assert defense.random
    assert defense.differentiable
    result = defense(x, streams())
    (gradient,) = torch.autograd.grad(result.sum(), x)
    sizes = torch.tensor([pattern(image)[0] for image in result.detach()])
    # Every pixel of the result is a weighted mean of pixels: weights of all pixels of an image sum
    # to its area.
    torch.testing.assert_close(gradient[:, 0].sum(dim=(1, 2)), sizes.float() ** 2)


def test_autocast_does_not_round_the_images(images, streams):
    defense = RandomResizePad(8, 11)
    with torch.autocast("cpu", torch.bfloat16):
        result = defense(images(), streams())
    torch.testing.assert_close(result.float(), defense(images(), streams()), rtol=0, atol=1e-5)


@pytest.mark.parametrize("options", [{"low": 9}, {"canvas": 14}, {"mode": "nearest"}])
def test_every_option_changes_the_outcome(options, images, streams):
    plain = RandomResizePad(**{"low": 7, "canvas": 12})(images(), streams())
    other = RandomResizePad(**{"low": 7, "canvas": 12, **options})(images(), streams())
    assert plain.shape != other.shape or not torch.allclose(plain, other, atol=1e-3)


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"low": 0}, "low"),
        ({"low": 5, "canvas": 5}, "canvas"),
        ({"low": 5, "canvas": 4}, "canvas"),
        ({"mode": "x"}, "mode"),
    ],
)
def test_impossible_options_are_named(options, named):
    with pytest.raises(OptionError, match=rf"^{named} = "):
        RandomResizePad(**options)


def test_half_of_the_images_are_mirrored_in_the_challenge_entry():
    images = torch.rand(400, 1, 4, 4, generator=torch.Generator().manual_seed(0))
    rng = Rng.for_images(0, torch.arange(400))
    plain, mirrored = (RandomResizePad(4, 5, flip=flip)(images, rng) for flip in (0.0, 1.0))
    half = RandomResizePad(4, 5, flip=0.5)(images, rng)
    # The same places as without
    assert torch.equal(mirrored, RandomResizePad(4, 5)(images.flip(3), rng))
    as_plain, as_mirrored = ((half == other).flatten(1).all(dim=1) for other in (plain, mirrored))
    assert (as_plain ^ as_mirrored).all()
    assert 160 < int(as_mirrored.sum()) < 240  # four standard deviations


def test_a_flip_that_is_no_probability_is_refused():
    with pytest.raises(OptionError, match="flip = 1.5: must lie between 0 and 1"):
        RandomResizePad(4, 5, flip=1.5)
