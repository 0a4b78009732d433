"""How often does the host wait for the device in an attack, and does that grow with its steps?

    python -m benchmarks.synchronisations --device cuda --output synchronisations.json

On a GPU torch itself says where (``torch.cuda.set_sync_debug_mode``). A CPU has nobody to wait for:
``--pretend tests/pretend`` counts on the tests' pretend device instead (docs/processors.md).
"""

from __future__ import annotations

import argparse
import importlib
import sys
import warnings
from collections import Counter
from collections.abc import Callable
from typing import Any

import torch

from benchmarks.subjects import ALONE, BEHIND_G, add_subject, shortened, subject
from benchmarks.timing import machine, report_file, write
from robusttrain.core.errors import UserError

#: How the warnings of torch begin, each of which is a wait.
WAITS = "called a synchronizing CUDA operation"


def on_gpu(call: Callable[[], object]) -> Counter[str]:
    """Waits of a call on a GPU, by the line that waits."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        try:
            call()
        finally:
            torch.cuda.set_sync_debug_mode("default")
    return places(caught)


def places(caught: list[warnings.WarningMessage]) -> Counter[str]:
    """Warnings of waits by "file:line"."""
    return Counter(
        f"{each.filename.rpartition('robusttrain/')[2]}:{each.lineno}"
        for each in caught
        if WAITS in str(each.message)
    )


def pretended(folder: str) -> tuple[torch.device, Callable[[Callable[[], object]], Counter[str]]]:
    """The tests' pretend device, and what counts waits on it."""
    sys.path.insert(0, folder)
    device, waits = importlib.import_module("pretend_device"), importlib.import_module("waits")

    def count(call: Callable[[], object]) -> Counter[str]:
        with waits.counted() as counted:
            call()
        places: Counter[str] = counted.places
        return places

    device.BACKEND.shown = True
    return device.DEVICE, count


def main() -> None:
    """Parse, count, write."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_subject(parser)
    parser.add_argument("--attack", nargs="+", default=[*ALONE, *BEHIND_G])
    parser.add_argument("--steps", type=int, nargs=2, default=[5, 10], help="of both runs")
    parser.add_argument("--draws", type=int, default=2, help="of EOT")
    parser.add_argument("--epsilon", type=float, default=0.031)
    parser.add_argument("--pretend", help="folder of the pretend device, on a CPU")
    parser.add_argument(
        "--output", type=report_file, default="results/benchmarks/synchronisations.json"
    )
    arguments = parser.parse_args()
    device = torch.device(arguments.device)
    count: Callable[[Callable[[], object]], Counter[str]] = on_gpu
    if device.type == "cpu":
        if arguments.pretend is None:
            raise UserError("--device cpu: a CPU waits for nobody; give --pretend tests/pretend")
        device, count = pretended(arguments.pretend)
    rows: dict[str, Any] = {}
    for name in arguments.attack:
        target, images, labels, rng = subject(arguments, name, device)
        runs = []
        for steps in (arguments.steps[0], *arguments.steps):  # the first one loads and folds
            chosen = shortened(name, steps, arguments.draws, arguments.epsilon)
            source = chosen.source(target.fast(torch.float32))
            call = chosen.attack
            runs.append(count(lambda: call(source, images, labels, rng)))  # noqa: B023 - at once
        few, many = (run.total() for run in runs[1:])
        rows[name] = {
            "waits": {str(steps): n for steps, n in zip(arguments.steps, (few, many), strict=True)},
            "more_for_each_step": round(
                (many - few) / (arguments.steps[1] - arguments.steps[0]), 3
            ),
            "where": dict(runs[2].most_common(10)),
        }
    report = {
        "command": "python -m benchmarks.synchronisations " + " ".join(sys.argv[1:]),
        "machine": machine(arguments.device),
        "counted_by": "torch.cuda.set_sync_debug_mode" if count is on_gpu else "pretend device",
        "images": arguments.images,
        "draws": arguments.draws,
        "attacks": rows,
    }
    write(report, arguments.output)


if __name__ == "__main__":
    main()
