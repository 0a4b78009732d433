"""The processor, on which times and the choice of a precision depend."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
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


def seconds_of(call: Callable[[], object], device: torch.device, rounds: int = 3) -> float:
    """Seconds of the fastest of ``rounds`` calls after one that warms up."""
    seconds = []
    for _ in range(rounds + 1):
        start = time.perf_counter()
        call()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        seconds.append(time.perf_counter() - start)
    return min(seconds[1:])
