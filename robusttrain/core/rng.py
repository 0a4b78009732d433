"""Randomness that belongs to the image.

Every random number here is a pure function of a 64-bit key and a counter, and every image of a
batch has a key of its own. Keys are derived, never drawn: ``Rng.for_images(seed,
indices).fold("score").fold(draw)``. Hence batch size, order, device, number of processes and a
resumed run change nothing. Images may leave a batch (``rng[keep]``) without disturbing the others.

The generator is SplitMix64 (Steele, Lea & Flood, OOPSLA 2014): number ``n`` of a stream is
``mix(key + n * GAMMA)``, where ``mix`` is a bijection of 64-bit integers. It runs as a handful of
int64 tensor operations on whole batches.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

_WORD = 1 << 64


def _signed(value: int) -> int:
    """A 64-bit pattern as the Python integer that an int64 tensor holds for it."""
    value %= _WORD
    return value - _WORD if value >= _WORD >> 1 else value


_GAMMA = _signed(0x9E3779B97F4A7C15)
_MIX_1 = _signed(0xBF58476D1CE4E5B9)
_MIX_2 = _signed(0x94D049BB133111EB)


def _mix(z: Tensor) -> Tensor:
    """SplitMix64's output function, in place. torch shifts int64 arithmetically; the masks make the
    shifts logical.
    """
    z.bitwise_xor_((z >> 30).bitwise_and_((1 << 34) - 1)).mul_(_MIX_1)
    z.bitwise_xor_((z >> 27).bitwise_and_((1 << 37) - 1)).mul_(_MIX_2)
    return z.bitwise_xor_((z >> 31).bitwise_and_((1 << 33) - 1))


class Rng:
    """One random stream per image of a batch.

    Args:
        keys: (B,) int64, one key per image, on the device where the numbers are needed.
        position: how many numbers were drawn.
        scoring: (B,) int64, keys of the streams that will score the images, where an attacker is
            given them; they go along unchanged. None where they are a secret.
        rows: (B,) int64, the images' places in the batch that an evaluation attacks; they go along
            unchanged, but not to stacked copies. None where nobody asks for them.

    Drawing advances the streams of all images alike; ``fold``, ``tile`` and indexing give new
    streams and leave this one as it is.
    """

    def __init__(
        self,
        keys: Tensor,
        position: int = 0,
        scoring: Tensor | None = None,
        rows: Tensor | None = None,
    ) -> None:
        self.keys = keys
        self.position = position
        self.scoring = scoring
        self.rows = rows

    @classmethod
    def for_images(cls, seed: int, indices: Tensor) -> Rng:
        """Streams that depend on ``seed`` and on each image's index in its data set, (B,) int64,
        alone.
        """
        # From 1: mix(0) is 0, and image 0 would share streams with others.
        return cls(_mix((indices.to(torch.int64) + 1) * _GAMMA)).fold(seed)

    @classmethod
    def from_global(cls, batch: int, device: torch.device | str) -> Rng:
        """Streams with keys from torch's global generator, for callers without streams."""
        keys = torch.randint(-(2**63), 2**63 - 1, (batch,), dtype=torch.int64)
        return cls(keys.to(device))

    def __len__(self) -> int:
        return len(self.keys)

    def __getitem__(self, which: Tensor | slice) -> Rng:
        """The streams of some of the images, at the same position."""
        scoring = None if self.scoring is None else self.scoring[which]
        rows = None if self.rows is None else self.rows[which]
        return Rng(self.keys[which], self.position, scoring, rows)

    def disclosing(self, scoring: Rng) -> Rng:
        """The same streams, together with those that will score the images: for an attacker who is
        given them.
        """
        return Rng(self.keys, self.position, scoring.keys, self.rows)

    def numbered(self) -> Rng:
        """The same streams, which from now on say whose they are: ``rows`` 0..B-1."""
        rows = torch.arange(len(self), device=self.keys.device)
        return Rng(self.keys, self.position, self.scoring, rows)

    def fold(self, tag: int | str) -> Rng:
        """New streams, independent of those of any other ``tag`` (a step, a draw, a purpose)."""
        if isinstance(tag, str):  # maybe a file's name in another encoding
            tag = zlib.crc32(tag.encode(errors="surrogatepass")) | 1 << 32
        keys = self._folded(_signed(tag * _GAMMA))
        return Rng(keys, scoring=self.scoring, rows=self.rows)

    def _folded(self, tag: Tensor | int) -> Tensor:
        """The keys of `fold`, for a tag that is multiplied by GAMMA already."""
        # Two rounds of mixing: keys that differ in one bit and tags that differ by one end up
        # unrelated.
        return _mix(_mix(self.keys + tag) + _GAMMA)

    def tile(self, copies: int | range) -> Rng:
        """Streams for ``copies`` stacked copies of the batch, copy ``k`` being ``fold(k)``: (copies
        * B,) in all.
        """
        each = range(copies) if isinstance(copies, int) else copies
        scoring = None if self.scoring is None else self.scoring.repeat(len(each))
        # All copies at once, as attacks ask for hundreds of them in a step.
        device = self.keys.device
        tags = torch.arange(each.start, each.stop, each.step, dtype=torch.int64, device=device)
        return Rng(self._folded(tags.mul_(_GAMMA)[:, None]).flatten(), scoring=scoring)

    def _bits(self, shape: Sequence[int]) -> Tensor:
        count = math.prod(shape)
        if (noted := _noted.get()) is not None:
            noted.setdefault(self, self.position)
        counters = torch.arange(
            self.position + 1, self.position + 1 + count, device=self.keys.device
        )
        self.position += count
        return _mix(self.keys[:, None] + counters.mul_(_GAMMA)).view(len(self), *shape)

    def uniform(self, shape: Sequence[int], low: float = 0.0, high: float = 1.0) -> Tensor:
        """(B, *shape) float32, uniform in [low, high)."""
        # The top 24 bits are as many as a float32 in [0, 1) holds exactly.
        bits = self._bits(shape).bitwise_right_shift_(40).bitwise_and_((1 << 24) - 1)
        return bits.to(torch.float32).mul_((high - low) * 2.0**-24).add_(low)

    def normal(self, shape: Sequence[int]) -> Tensor:
        """(B, *shape) float32, standard normal, by Box and Muller's transform."""
        # Shifted by half a step, so that the logarithm never sees zero.
        radius = self.uniform(shape).add_(2.0**-25).log_().mul_(-2.0).sqrt_()
        return self.uniform(shape, high=2 * math.pi).cos_().mul_(radius)

    def integers(self, shape: Sequence[int], low: Tensor | int, high: Tensor | int) -> Tensor:
        """(B, *shape) int64, uniform in [low, high); bounds may be tensors that broadcast against
        the result.
        """
        span = high - low  # a number stays one: as a tensor it would be copied to the device
        # 31 random bits times a span below 2^31 fit in 63 bits: no float rounding, and a bias below
        # span / 2^31.
        bits = self._bits(shape).bitwise_right_shift_(33).bitwise_and_((1 << 31) - 1)
        return (bits * span >> 31) + low

    def permutation(self, count: int) -> Tensor:
        """(B, count) int64: one permutation of 0..count-1 per image."""
        return self.uniform((count,)).argsort(dim=1)


_noted: ContextVar[WeakKeyDictionary[Rng, int] | None] = ContextVar("noted", default=None)


class Draws:
    """The streams that a computation drew from, and where each stood before: to do it again with
    the same numbers.

    Streams that the computation makes for itself need no note, and are not kept.
    """

    def __init__(self) -> None:
        self._before: WeakKeyDictionary[Rng, int] = WeakKeyDictionary()

    @contextmanager
    def noted(self) -> Iterator[None]:
        """Within this context, and in this thread, note streams at their first draw."""
        outer = _noted.get()
        token = _noted.set(self._before)
        try:
            yield
        finally:
            _noted.reset(token)
            if outer is not None:
                for rng, position in self._before.items():
                    outer.setdefault(rng, position)

    @contextmanager
    def repeated(self) -> Iterator[None]:
        """Within this context, the noted streams start where they stood then; on leaving, they
        stand where they stood on entering.
        """
        now = [(rng, rng.position) for rng in self._before]
        for rng, _ in now:
            rng.position = self._before[rng]
        try:
            yield
        finally:
            for rng, position in now:
                rng.position = position
