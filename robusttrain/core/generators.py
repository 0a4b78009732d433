"""The global generators, which everybody shares: torch's, numpy's and Python's.

This package draws from streams that belong to the image (`Rng`). Other people's models may draw
from the global generators. `SharedGenerators` watches these, seeds them, and puts them back.
"""

from __future__ import annotations

import random

import numpy as np
import torch


class SharedGenerators:
    """The state of the global generators at the time of construction.

    Args:
        device: its torch generator counts, besides the CPU's.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._torch = [torch.default_generator]
        if device.type == "cuda":
            index = torch.cuda.current_device() if device.index is None else device.index
            self._torch.append(torch.cuda.default_generators[index])
        self._then = self._state()

    def _state(self) -> tuple[list[torch.Tensor], tuple[object, ...], tuple[object, ...]]:
        legacy = np.random.get_state(legacy=True)  # noqa: NPY002 - models of others draw from there
        assert isinstance(legacy, tuple)
        return [each.get_state() for each in self._torch], legacy, random.getstate()

    @property
    def drawn(self) -> bool:
        """Whether a generator was drawn from, or seeded, since then."""
        ours, legacy, own = self._then
        now, legacy_now, own_now = self._state()
        return not (
            own == own_now
            and all(torch.equal(one, other) for one, other in zip(ours, now, strict=True))
            and legacy[2:] == legacy_now[2:]
            and np.array_equal(legacy[1], legacy_now[1])  # type: ignore[arg-type]
        )

    def put_back(self) -> None:
        """Put all generators back into that state."""
        ours, legacy, own = self._then
        for generator, state in zip(self._torch, ours, strict=True):
            generator.set_state(state)
        np.random.set_state(legacy)  # type: ignore[arg-type]  # noqa: NPY002
        random.setstate(own)

    def seed(self, key: int) -> None:
        """Seed all generators with one 64-bit key."""
        for generator in self._torch:
            generator.manual_seed(key & (2**63 - 1))
        np.random.seed([key & (2**32 - 1), (key >> 32) & (2**32 - 1)])  # noqa: NPY002
        random.seed(key)
