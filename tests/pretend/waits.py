"""How often the host waits for a device, by what it waits for."""

from __future__ import annotations

import sys
import warnings
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

import robusttrain

#: Whether there is an accelerator, so that none has to be pretended.
REAL = torch.accelerator.is_available()
#: The folder of the package that is tested.
PACKAGE = f"{Path(robusttrain.__file__).parent}/"
aten = torch.ops.aten


class Waits(Counter):
    """How often the host waited for the device, by what it waited for; and where in this project.

    Args:
        places: "file:line function", how often.
    """

    def __init__(self) -> None:
        super().__init__()
        self.places: Counter[str] = Counter()

    def note(self, kind: str) -> None:
        self[kind] += 1
        self.places[f"{kind} at {_place()}"] += 1

    def told(self) -> str:
        """All places, the commonest first, for messages."""
        return "\n".join(f"{count} x {place}" for place, count in self.places.most_common())


def _place() -> str:
    """The innermost line of the package that is being run, modes that see every call aside."""
    frame = sys._getframe(2)
    while frame is not None:
        file, name = frame.f_code.co_filename, frame.f_code.co_name
        if file.startswith(PACKAGE) and not name.startswith("__torch"):
            return f"{file.removeprefix(PACKAGE)}:{frame.f_lineno} {name}"
        frame = frame.f_back
    return "elsewhere"


#: How torch says that the host waits for a GPU.
SYNCHRONIZING = "called a synchronizing CUDA operation"
#: Those that count now.
counting: list[Waits] = []


def agree(found: int, expected: int) -> bool:
    """Whether so many waits are as many as a table says, on the pretend device; on a real one, no
    more: what is a wait there depends on the kind.
    """
    return found <= expected if REAL else found == expected


@contextmanager
def counted() -> Iterator[Waits]:
    """Within this context, in all threads, waits are counted; on a CUDA device by torch itself."""
    waits = Waits()
    if REAL:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            torch.cuda.set_sync_debug_mode("warn")
            try:
                yield waits
            finally:
                torch.cuda.set_sync_debug_mode("default")
                for each in caught:
                    if SYNCHRONIZING in str(each.message):
                        waits["wait"] += 1
                        place = f"{each.filename.removeprefix(PACKAGE)}:{each.lineno}"
                        waits.places[f"wait at {place}"] += 1
        return
    counting.append(waits)
    try:
        yield waits
    finally:
        counting.remove(waits)


def note(kind: str) -> None:
    """Count a wait for something of this kind."""
    for waits in counting:
        waits.note(kind)


# What makes the host wait. A copy between pageable memory and a GPU waits in either direction.

#: Operations whose result the host reads, or whose result's size depends on the data.
WAITING: dict[Any, str] = {
    aten._local_scalar_dense.default: "item",
    aten.equal.default: "item",
    aten.nonzero.default: "nonzero",
    aten.nonzero_numpy.default: "nonzero",
    aten.masked_select.default: "mask",
    aten.bincount.default: "size",
    aten._unique2.default: "size",
    aten.unique_dim.default: "size",
    aten.unique_consecutive.default: "size",
    aten.multinomial.default: "item",  # it looks for negative probabilities
}
#: Operations that index; indices are their second argument, what is put there the third.
INDEXING = (
    aten.index.Tensor,
    aten._unsafe_index.Tensor,
    aten.index_put.default,
    aten.index_put_.default,
    aten._index_put_impl_.default,
    aten._unsafe_index_put.default,
)
COPIES = (aten.copy_.default, aten.copy.default, aten._to_copy.default)


def _is_number(value: Any) -> bool:
    """Whether a value comes from Python. To put it at an index, a GPU has to be waited for (seen on
    an H200 with torch 2.11); to fill by a mask, by ``fill_`` or by ``index_fill_``, it has not.
    """
    return getattr(value, "number", False)


def waits_for(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> str | None:
    """What an operation on the device makes the host wait for; None if for nothing."""
    if func in WAITING:
        return WAITING[func]
    if func is aten.repeat_interleave.Tensor and kwargs.get("output_size") is None:
        return "size"
    if func in INDEXING:
        indices = [each for each in args[1] if each is not None]
        masks = [each for each in indices if each.dtype in (torch.bool, torch.uint8)]
        # A number put where one mask says is a masked_fill, which waits for nothing.
        filled = len(args) > 2 and len(indices) == 1 and args[2].dim() == 0
        if masks:
            return None if filled else "mask"
        return "upload" if len(args) > 2 and _is_number(args[2]) else None
    if func in COPIES:
        if func is aten._to_copy.default:
            away = kwargs.get("device") is not None and torch.device(kwargs["device"]).type == "cpu"
            return "download" if away and not kwargs.get("non_blocking") else None
        if len(args) > 2 and args[2]:
            return None
        if _is_number(args[1]):
            return "upload"
        to, source = (each.device.type == "cpu" for each in args[:2])
        return "download" if to else "upload" if source else None
    return None
