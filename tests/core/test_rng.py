"""Streams that belong to the image: known answers, independence of the batch, and the right
distributions.
"""

import zlib

import pytest
import torch

from robusttrain.core.rng import Rng

WORD = 1 << 64
GAMMA = 0x9E3779B97F4A7C15


def mix(z: int) -> int:
    """SplitMix64's output function in unsigned Python integers."""
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9 % WORD
    z = (z ^ (z >> 27)) * 0x94D049BB133111EB % WORD
    return z ^ (z >> 31)


def signed(value: int) -> int:
    value %= WORD
    return value - WORD if value >= WORD // 2 else value


def folded(key: int, tag: int) -> int:
    return mix((mix((key + tag * GAMMA) % WORD) + GAMMA) % WORD)


def streams(count: int = 8, seed: int = 0) -> Rng:
    return Rng.for_images(seed, torch.arange(count))


@pytest.mark.parametrize(
    ("key", "published"),
    [
        (0, [0xE220A8397B1DCDAF, 0x6E789E6AA1B965F4, 0x06C45D188009454F]),
        (1234567, [6457827717110365317, 3203168211198807973, 9817491932198370423]),
    ],
)
def test_numbers_are_those_of_splitmix64(key, published):
    assert [mix((key + n * GAMMA) % WORD) for n in (1, 2, 3)] == published  # the reference itself
    keys = torch.tensor([key])
    assert Rng(keys).integers((3,), 0, 2**31).tolist() == [[value >> 33 for value in published]]
    assert Rng(keys).uniform((3,)).tolist() == [[(value >> 40) / 2**24 for value in published]]


@pytest.mark.parametrize("key", [-1, -(2**63), 2**63 - 1, 42])
def test_any_64_bit_key_works(key):
    expected = [mix((key + n * GAMMA) % WORD) >> 33 for n in (1, 2, 3, 4)]
    assert Rng(torch.tensor([key])).integers((2, 2), 0, 2**31).flatten().tolist() == expected


@pytest.mark.parametrize("tag", [0, 1, -1, 12345, 2**40, "start", "diverse"])
def test_fold_is_two_rounds_of_mixing(tag):
    number = zlib.crc32(tag.encode()) | 1 << 32 if isinstance(tag, str) else tag
    keys = [3, -7, 2**62]
    assert Rng(torch.tensor(keys)).fold(tag).keys.tolist() == [
        signed(folded(key % WORD, number)) for key in keys
    ]


def test_keys_of_images_depend_on_seed_and_index_alone():
    indices = torch.tensor([0, 5, 10**6])
    keys = Rng.for_images(7, indices).keys
    assert keys.tolist() == [
        signed(folded(mix((index + 1) * GAMMA % WORD), 7)) for index in indices.tolist()
    ]
    assert indices.tolist() == [0, 5, 10**6]  # not mixed in place
    assert not set(keys.tolist()) & set(Rng.for_images(8, indices).keys.tolist())


@pytest.mark.parametrize("draw", ["uniform", "normal", "integers", "permutation"])
def test_batch_size_and_order_change_nothing(draw):
    def numbers(rng: Rng) -> torch.Tensor:
        shapes = {"integers": ((3, 2), -5, 100), "permutation": (9,)}
        return getattr(rng, draw)(*shapes.get(draw, ((3, 2),)))

    whole = numbers(streams())
    order = torch.tensor([6, 0, 3])
    assert torch.equal(numbers(Rng.for_images(0, order)), whole[order])
    assert torch.equal(numbers(streams()[order]), whole[order])
    assert torch.equal(
        torch.cat([numbers(streams()[number : number + 1]) for number in range(8)]), whole
    )
    assert len({tuple(row.flatten().tolist()) for row in whole}) == 8


@pytest.mark.parametrize("which", [slice(2, 5), torch.tensor([4, 1]), torch.arange(8) % 2 == 0])
def test_images_may_leave_the_batch_in_the_middle_of_their_streams(which):
    rng = streams()
    rng.normal((5,))
    part = rng[which]
    rest = rng.uniform((4,))
    assert torch.equal(part.uniform((4,)), rest[which])
    assert len(part) == len(part.keys) == len(rest[which])


def test_drawing_advances_and_folding_does_not():
    whole, parts = streams(), streams()
    first = parts.uniform((2, 2)).flatten(1)
    before = parts.fold(3).keys
    assert torch.equal(torch.cat([first, parts.uniform((3,))], 1), whole.uniform((7,)))
    assert torch.equal(parts.fold(3).keys, before)
    assert torch.equal(parts.fold(3).uniform((2,)), streams().fold(3).uniform((2,)))


@pytest.mark.parametrize("copies", [3, range(2, 5)])
def test_tile_stacks_folds(copies):
    numbers = range(copies) if isinstance(copies, int) else copies
    tiled = streams().tile(copies)
    assert len(tiled) == 8 * len(numbers)
    for place, number in enumerate(numbers):
        part = tiled[slice(8 * place, 8 * place + 8)]
        assert torch.equal(part.uniform((2,)), streams().fold(number).uniform((2,)))


def test_derived_keys_never_meet():
    indices = torch.arange(200)
    keys = [
        Rng.for_images(seed, indices).fold(tag).keys
        for seed in range(5)
        for tag in (*range(20), "aim", "start")
    ]
    keys += [
        Rng.for_images(0, indices).fold(1).fold(2).keys,
        Rng.for_images(0, indices).fold(2).fold(1).keys,
    ]
    keys = torch.cat(keys)
    assert len(keys.unique()) == len(keys)


@pytest.mark.parametrize("related", ["images", "tags", "seeds", "later"])
def test_related_streams_are_uncorrelated(related):
    rng = Rng.for_images(0, torch.arange(0, 4000, 2))
    other = {
        "images": Rng.for_images(0, torch.arange(1, 4000, 2)),
        "tags": rng.fold(1),
        "seeds": Rng.for_images(1, torch.arange(0, 4000, 2)),
        "later": Rng(rng.keys, 50),
    }[related]
    rng = rng.fold(0) if related == "tags" else rng
    one, two = rng.uniform((50,)).flatten(), other.uniform((50,)).flatten()
    correlation = torch.corrcoef(torch.stack([one, two]))[0, 1]
    assert correlation.abs() < 5 / len(one) ** 0.5  # five standard deviations


def test_uniform_numbers_are_uniform():
    numbers = streams(100).uniform((2000,)).flatten().double()
    count = len(numbers)
    assert 0 <= numbers.min() < 1e-4
    assert 1 - 1e-4 < numbers.max() < 1
    assert abs(numbers.mean() - 1 / 2) < 5 * (1 / 12 / count) ** 0.5
    assert abs(numbers.var() - 1 / 12) < 5 * (1 / 180 / count) ** 0.5
    empirical = (torch.arange(count) + 0.5) / count
    assert (
        numbers.sort().values - empirical
    ).abs().max() < 2 / count**0.5  # Kolmogorov and Smirnov


@pytest.mark.parametrize(("low", "high"), [(-0.2, 0.2), (0.5, 1.0), (-3.0, -1.0)])
def test_uniform_bounds(low, high):
    numbers = streams(50).uniform((1000,), low, high)
    assert numbers.dtype == torch.float32
    assert numbers.shape == (50, 1000)
    assert low <= numbers.min() < low + 0.01 * (high - low)
    assert high - 0.01 * (high - low) < numbers.max() < high
    torch.testing.assert_close(numbers, low + (high - low) * streams(50).uniform((1000,)))


def test_normal_numbers_have_normal_moments():
    numbers = streams(100).normal((2000,)).flatten().double()
    count = len(numbers)
    assert numbers.isfinite().all()
    # Standard deviations of the first four sample moments of a standard normal: 1, sqrt 2, sqrt 15,
    # sqrt 96.
    for power, moment, deviation in ((1, 0, 1), (2, 1, 2**0.5), (3, 0, 15**0.5), (4, 3, 96**0.5)):
        assert abs((numbers**power).mean() - moment) < 5 * deviation / count**0.5
    empirical = (torch.arange(count) + 0.5) / count
    assert (torch.special.ndtr(numbers.sort().values) - empirical).abs().max() < 2 / count**0.5


def test_normal_is_finite_where_the_uniform_number_is_zero(monkeypatch):
    monkeypatch.setattr(
        Rng, "_bits", lambda self, shape: torch.zeros(len(self), *shape, dtype=torch.int64)
    )
    assert Rng(torch.zeros(1, dtype=torch.int64)).normal((1,)).isfinite().all()


def test_integers_are_uniform():
    counts = torch.bincount(streams(100).integers((1400,), -3, 4).flatten() + 3, minlength=7)
    assert len(counts) == 7
    expected = 140000 / 7
    assert (
        (counts - expected) ** 2 / expected
    ).sum() < 30  # chi-squared, 6 degrees of freedom: 22 at 1 in 1,000


def test_integers_take_a_bound_for_each_image():
    low, high = torch.tensor([0, 5, -2]), torch.tensor([1, 8, 2])
    numbers = torch.stack(
        [streams(3).fold(number).integers((), low, high) for number in range(200)]
    )
    assert numbers.dtype == torch.int64
    for image in range(3):
        assert set(numbers[:, image].tolist()) == set(range(low[image], high[image]))
    assert streams(3).integers((4,), low[:, None], high[:, None]).shape == (3, 4)


def test_permutations_are_permutations_and_uniform():
    permutations = streams(6000).permutation(3)
    assert torch.equal(permutations.sort(1).values, torch.arange(3).expand(6000, 3))
    counts = torch.bincount(permutations @ torch.tensor([9, 3, 1]), minlength=27)
    counts = counts[counts > 0].double()
    assert len(counts) == 6
    assert ((counts - 1000) ** 2 / 1000).sum() < 25  # chi-squared, 5 degrees of freedom


def test_global_streams_follow_the_global_seed():
    torch.manual_seed(3)
    first, second = (Rng.from_global(4, "cpu").keys for _ in range(2))
    torch.manual_seed(3)
    assert torch.equal(Rng.from_global(4, "cpu").keys, first)
    assert len(torch.cat([first, second]).unique()) == 8


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_the_device_changes_nothing():
    here, there = streams(), Rng.for_images(0, torch.arange(8, device="cuda"))
    assert torch.equal(here.fold("a").uniform((5,)), there.fold("a").uniform((5,)).cpu())
    assert torch.equal(here.integers((5,), 0, 9), there.integers((5,), 0, 9).cpu())
    torch.testing.assert_close(here.normal((5,)), there.normal((5,)).cpu())


def test_names_in_another_encoding_have_streams():
    """As of an attack whose file is named in Latin-1."""
    rng = Rng.for_images(0, torch.arange(2))
    one, two = (rng.fold(name).uniform((3,)) for name in ("caf\udce9", "caf\udce8"))
    assert not torch.equal(one, two)
