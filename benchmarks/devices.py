"""An evaluation by two processes beside one, through the real command line, one thread each.

    python -m benchmarks.devices --root data/cifar10-jpeg --weights FILE --output devices.json

Runs of one and of two processes take turns. Of each the whole command is timed, and the attack
alone: from the beginning of the first entry of the journal to the end of the last one. What the
command takes besides does not shrink with more processes: the second one starts when the first one
is ready, and reads models and data again.

On a machine that others use, the cores are not both free, and the clock says little. So the
processor's seconds, of all processes together, are taken as well: those of the command less those
of the same command on a single batch are the attack's. Two free cores need half of what both
processes use. What the cores share, such as memory, is not in this figure.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks.timing import machine, report_file, write
from robusttrain.storage.weights import read_tensors

#: Seconds between two looks at what the processes have used.
PAUSE = 0.1


class Seconds(NamedTuple):
    """Of one run: the whole command, its attack, and the processor in all processes."""

    command: float
    attack: float
    processor: float


def run(arguments: argparse.Namespace, processes: int, images: int, output: Path) -> Seconds:
    """Evaluate so many images with so many processes."""
    command = [
        *(sys.executable, "evaluate.py", "--data", "imagefolder", "--data.root", arguments.root),
        *("--model", "vgg_small", "--weights", arguments.weights, "--defense", "none"),
        *("--attack", arguments.attack, "--epsilon", "0.031", "--images", str(images)),
        *("--data.batch_size", str(arguments.batch_size), "--precision", arguments.precision),
        *("--audit", "false", "--save_verdicts", "true", "--fresh", "true"),
        *("--trainer.accelerator", "cpu", "--output", str(output)),
    ]
    if processes > 1:
        command += ["--trainer.devices", str(processes), "--trainer.strategy", "ddp"]
    environment, used = {**os.environ, "OMP_NUM_THREADS": "1"}, dict[int, float]()
    start = time.perf_counter()
    nowhere = subprocess.DEVNULL
    with subprocess.Popen(command, env=environment, stdout=nowhere, stderr=nowhere) as first:
        while first.poll() is None:
            used |= _processor(str(output))
            time.sleep(PAUSE)
    whole = time.perf_counter() - start
    if first.returncode:
        raise SystemExit(f"exit code {first.returncode}: {' '.join(command)}")
    return Seconds(whole, _attack(output / "journal"), sum(used.values()))


def _processor(word: str) -> dict[int, float]:
    """Seconds of the processor so far, of each process with a word in its command line.

    The first process does not wait for the one that it starts, so the system does not add them up.
    """
    seconds = {}
    for process in Path("/proc").glob("[0-9]*"):
        try:
            if word.encode() in (process / "cmdline").read_bytes():
                fields = (process / "stat").read_text().rpartition(")")[2].split()
                ticks = int(fields[11]) + int(fields[12])
                seconds[int(process.name)] = ticks / os.sysconf("SC_CLK_TCK")
        except OSError:  # it has ended
            continue
    return seconds


def _attack(journal: Path) -> float:
    """Seconds from the beginning of the first entry to the end of the last one."""
    ends = {path: path.stat().st_mtime for path in journal.glob("*/*.safetensors")}
    begun = [end - float(read_tensors(path)["seconds"]) for path, end in ends.items()]
    return max(ends.values()) - min(begun)


def _median(spent: list[Seconds]) -> Seconds:
    return Seconds(*(statistics.median(each) for each in zip(*spent, strict=True)))


def main() -> None:
    """Parse, run, write."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--root", required=True, help="image folder with test/")
    parser.add_argument("--weights", required=True, help="of a vgg_small for these images")
    parser.add_argument("--attack", default="pgd")
    parser.add_argument("--images", type=int, default=500)
    parser.add_argument("--batch_size", type=int, default=50)
    parser.add_argument("--precision", default="float32")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--output", type=report_file, default="results/benchmarks/devices.json")
    arguments = parser.parse_args()
    runs: dict[int, list[Seconds]] = {1: [], 2: []}
    idle: dict[int, list[Seconds]] = {1: [], 2: []}
    figures: dict[int, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        for _ in range(arguments.rounds):
            for processes, spent in runs.items():
                output = Path(folder) / str(processes)
                spent.append(run(arguments, processes, arguments.images, output))
                figures[processes] = json.loads((output / "results.json").read_text())
                idle[processes].append(run(arguments, processes, arguments.batch_size, output))
    alone, together = (_median(spent) for spent in runs.values())
    # Of the images that the short run has not.
    used = [_median(runs[each]).processor - _median(idle[each]).processor for each in runs]
    rows = [each["attacks"][arguments.attack]["robust_accuracy"] for each in figures.values()]
    write(
        {
            "command": "python -m benchmarks.devices " + " ".join(sys.argv[1:]),
            "machine": machine(),
            "load": os.getloadavg(),
            "one": alone._asdict(),
            "two": together._asdict(),
            "runs": {number: [each._asdict() for each in spent] for number, spent in runs.items()},
            "of_one_batch": {
                number: [each._asdict() for each in spent] for number, spent in idle.items()
            },
            "times_as_fast": {
                "attack": alone.attack / together.attack,
                "command": alone.command / together.command,
                "attack_by_processor_seconds": 2 * used[0] / used[1],
            },
            "robust_accuracy": dict(zip(("one", "two"), rows, strict=True)),
        },
        arguments.output,
    )


if __name__ == "__main__":
    main()
