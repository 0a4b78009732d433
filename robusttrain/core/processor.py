"""The processor, on which times and the choice of a precision depend."""

from __future__ import annotations

import hashlib
import os
import platform
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch


def cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def processor(device: torch.device | None = None) -> dict[str, Any]:
    """Device, vector instructions, cores, threads and torch's version, for ``results.json``."""
    facts: dict[str, Any] = {
        "device": "cpu",
        "capability": torch.backends.cpu.get_cpu_capability(),
        "cores": cores(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
    }
    if device is not None and device.type == "cuda":
        major, minor = torch.cuda.get_device_capability(device)
        facts |= {"device": torch.cuda.get_device_name(device), "capability": f"sm_{major}{minor}"}
    return facts


def instructions() -> str:
    """Twelve hex digits that two processes share if code compiled for one may run in the other:
    the processor's instructions, and the vector width that torch uses of them (which the variable
    ATEN_CPU_CAPABILITY can lower).
    """
    flags = [platform.machine(), platform.processor()]
    if (facts := Path("/proc/cpuinfo")).is_file():
        lines = facts.read_text().splitlines()
        flags += sorted({line for line in lines if line.lower().startswith(("flags", "features"))})
    flags += [torch.backends.cpu.get_cpu_capability(), os.environ.get("ATEN_CPU_CAPABILITY", "")]
    return hashlib.sha256("\n".join(flags).encode()).hexdigest()[:12]


def finish(device: torch.device) -> None:
    """Wait until an accelerator has done all that it was given: until then, a clock tells how long
    it took to hand out the work.
    """
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type != "cpu":
        # Not every device that others bring along has it.
        getattr(torch.get_device_module(device), "synchronize", lambda: None)()


#: From so many images on, a CPU takes as long for each as in a larger batch.
FEW = 16


def telling_size(images: int, device: torch.device) -> int:
    """How many of so many images tell what one of them costs: a few on a CPU; all on an
    accelerator, which hardly takes longer for them than for one.
    """
    return min(FEW, images) if device.type == "cpu" else images


def seconds_of(call: Callable[[], object], device: torch.device, rounds: int = 3) -> float:
    """Seconds of the fastest of ``rounds`` calls after one that warms up."""
    seconds = []
    for _ in range(rounds + 1):
        start = time.perf_counter()
        call()
        finish(device)
        seconds.append(time.perf_counter() - start)
    return min(seconds[1:])
