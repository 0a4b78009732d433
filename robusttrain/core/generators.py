"""The generators that everybody shares: torch's, numpy's and Python's.

What is ours draws from streams that belong to the image (`Rng`). Models of others draw from here,
and so these generators can be watched, seeded, and put back as they were.
"""

from __future__ import annotations

import random

import numpy as np
import torch


class SharedGenerators:
    """The state of the global generators as it was when this was made.

    Args:
        device: whose torch generator counts besides the CPU's.
    """

    def __init__(self, device: torch.device) -> None:
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
        """Whether anything was drawn, or seeded, since."""
        ours, legacy, own = self._then
        now, legacy_now, own_now = self._state()
        return not (
            own == own_now
            and all(torch.equal(one, other) for one, other in zip(ours, now, strict=True))
            and legacy[2:] == legacy_now[2:]
            and np.array_equal(legacy[1], legacy_now[1])  # type: ignore[arg-type]
        )

    def put_back(self) -> None:
        """All generators as they were."""
        ours, legacy, own = self._then
        for generator, state in zip(self._torch, ours, strict=True):
            generator.set_state(state)
        np.random.set_state(legacy)  # type: ignore[arg-type]  # noqa: NPY002
        random.setstate(own)

    def seed(self, key: int) -> None:
        """All generators as one 64-bit key has it."""
        for generator in self._torch:
            generator.manual_seed(key & (2**63 - 1))
        np.random.seed([key & (2**32 - 1), (key >> 32) & (2**32 - 1)])  # noqa: NPY002
        random.seed(key)
