"""Several processes that train one model: what belongs to the whole batch, of which each has a
part.

Part k of a batch is with process k, and all parts have the same size (`EpochBatches`).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TypeVar

import torch
import torch.distributed
from torch import Tensor

Part = TypeVar("Part")

_shared: ContextVar[bool] = ContextVar("shared", default=False)


@contextmanager
def one_batch(shared: bool) -> Iterator[None]:
    """Within this context, the batches of all processes count as one, if they are shared.

    Each process then has to call the functions below equally often. Outside of this context they
    ask nobody, since processes may just as well train a model each.
    """
    token = _shared.set(shared and torch.distributed.is_initialized())
    try:
        yield
    finally:
        _shared.reset(token)


def everyone(mine: Part) -> list[Part]:
    """The same thing of all processes, whether they share batches or not."""
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return [mine]
    parts = [mine] * torch.distributed.get_world_size()
    torch.distributed.all_gather_object(parts, mine)
    return parts


def of_first(mine: Tensor) -> Tensor:
    """The first process's tensor; all processes have one of this shape and type."""
    if not _shared.get():
        return mine
    theirs = mine.detach().clone(memory_format=torch.contiguous_format)
    torch.distributed.broadcast(theirs, src=0)
    return theirs


def of_previous(mine: Tensor) -> Tensor:
    """The tensor of the process before this one; of the last process for the first."""
    if not _shared.get():
        return mine
    mine = mine.detach().contiguous()
    parts = [torch.empty_like(mine) for _ in range(torch.distributed.get_world_size())]
    torch.distributed.all_gather(parts, mine)
    return parts[torch.distributed.get_rank() - 1]


def mean_of_all(mine: Sequence[Tensor]) -> list[Tensor]:
    """The means over all processes of several tensors."""
    if not _shared.get() or not mine:
        return list(mine)
    flat = torch.cat([each.detach().flatten() for each in mine])
    torch.distributed.all_reduce(flat)
    flat /= torch.distributed.get_world_size()
    parts = flat.split([each.numel() for each in mine])
    return [part.view(each.shape) for part, each in zip(parts, mine, strict=True)]
