"""The peak of a call above what was held before: what an attack needs beside the models.

On the CPU it is that of a process; on an accelerator that of the tensors that torch holds there.
"""

from __future__ import annotations

import multiprocessing
import os
import resource
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch

#: Writing 5 here makes Linux forget the process's largest size so far (proc(5)).
FORGET = Path("/proc/self/clear_refs")


def _held() -> float:
    """MiB that this process held at its largest."""
    status = Path("/proc/self/status")
    if status.is_file():  # ru_maxrss would remember what was forgotten
        (line,) = (each for each in status.read_text().splitlines() if each.startswith("VmHWM"))
        return int(line.split()[1]) / 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def _measure(
    pipe: Connection, prepare: Callable[..., Callable[[], object]], arguments: tuple[Any, ...]
) -> None:
    pipe.send(peak_here(prepare(*arguments)))


def peak_here(call: Callable[[], object], device: str | torch.device = "cpu") -> float:
    """MiB that a call needs at its largest, in this process: on the CPU right for one call, since
    what glibc keeps of it serves the next one. An accelerator's first call pays for libraries, too.
    """
    device = torch.device(device)
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        start = torch.cuda.memory_allocated(device)
        call()
        torch.cuda.synchronize(device)
        return (torch.cuda.max_memory_allocated(device) - start) / 2**20
    if os.access(FORGET, os.W_OK):  # loading may have held more than the call will
        FORGET.write_text("5")
    before = _held()
    call()
    return _held() - before


def peak(prepare: Callable[..., Callable[[], object]], *arguments: Any) -> float:
    """MiB that a call needs at its largest.

    glibc is told to hand every large block back at once: what it would keep for later grows with
    every allocation, and is not what the call needs.

    Args:
        prepare: ``prepare(*arguments)`` loads what is there before, and returns the call;
            importable by name.
    """
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=_measure, args=(theirs, prepare, arguments))
    # A fixed one: glibc would raise it as blocks come and go
    os.environ["MALLOC_MMAP_THRESHOLD_"] = str(128 * 1024)
    process.start()
    del os.environ["MALLOC_MMAP_THRESHOLD_"]
    theirs.close()
    most: float = ours.recv()
    process.join()
    return most
