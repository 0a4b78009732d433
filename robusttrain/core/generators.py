"""The global generators, which everybody shares: torch's, numpy's and Python's.

This package draws from streams that belong to the image (`Rng`). Other people's models may draw
from the global generators. `SharedGenerators` watches these, seeds them, and puts them back.
"""

from __future__ import annotations

import random
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import numpy as np
import torch


class SharedGenerators:
    """The state of the global generators at the time of construction.

    Args:
        device: its torch generator counts, besides the CPU's, whatever accelerator it is.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        #: The module with the device's generator, by functions that every such module has.
        self._module: Any = None if device.type == "cpu" else torch.get_device_module(device)
        self._then = self._state()

    def _state(self) -> tuple[list[torch.Tensor], tuple[object, ...], tuple[object, ...]]:
        legacy = np.random.get_state(legacy=True)  # noqa: NPY002 - models of others draw from there
        assert isinstance(legacy, tuple)
        states = [torch.default_generator.get_state()]
        if self._module is not None:
            states.append(self._module.get_rng_state(self.device))
        return states, legacy, random.getstate()

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
        torch.default_generator.set_state(ours[0])
        if self._module is not None:
            self._module.set_rng_state(ours[1], self.device)
        np.random.set_state(legacy)  # type: ignore[arg-type]  # noqa: NPY002
        random.setstate(own)

    def seed(self, key: int) -> None:
        """Seed all generators with one 64-bit key."""
        number = key & (2**63 - 1)
        torch.default_generator.manual_seed(number)
        if self._module is not None:
            with self._current():
                self._module.manual_seed(number)
        np.random.seed([key & (2**32 - 1), (key >> 32) & (2**32 - 1)])  # noqa: NPY002
        random.seed(key)

    def _current(self) -> AbstractContextManager[Any]:
        """Within this context the device is the current one, where there may be several."""
        several = self.device.type in ("cuda", "xpu")
        return self._module.device(self.device) if several else nullcontext()
