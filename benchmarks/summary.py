"""The end of `benchmarks/on_gpu.sh`: what ran, how long, and what failed or was left out, and why.

    python -m benchmarks.summary OUT --device cuda

Reads ``OUT/parts.tsv`` (part, exit code or why it was left out, seconds, limit in seconds) and the
parts' own JSON; writes ``OUT/summary.json``. Exit code 1 if a part failed.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from benchmarks.timing import machine, write
from robusttrain.core.version import __version__

#: What ``timeout`` returns for a command that it ended.
TOO_LONG = (124, 137)


def summary(folder: Path) -> dict[str, Any]:
    """Seconds by part, what failed and what was left out, each with its reason."""
    seconds: dict[str, int] = {}
    failed: dict[str, str] = {}
    left_out: dict[str, Any] = {}
    for line in (folder / "parts.tsv").read_text().splitlines():
        name, outcome, spent, limit = line.split("\t")
        if not outcome.isdecimal():
            left_out[name] = outcome
            continue
        seconds[name] = int(spent)
        report = folder / f"{name}.json"
        if int(outcome) in TOO_LONG:
            failed[name] = f"took more than its {limit} s"
        elif int(outcome) or not report.is_file():
            failed[name] = f"exit code {outcome}, {last_line(folder / f'{name}.log')}"
        elif inside := json.loads(report.read_text()).get("left_out"):
            left_out[name] = inside
    return {"seconds": seconds, "failed": failed, "left_out": left_out}


def last_line(log: Path) -> str:
    """How a part ended, by its log."""
    lines = log.read_text(errors="replace").split("\n") if log.is_file() else []
    return next((line.strip() for line in reversed(lines) if line.strip()), "nothing in its log")


def main() -> None:
    """Read, write, and say by the exit code whether all went well."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--commit", default="")
    arguments = parser.parse_args()
    try:
        there = machine(arguments.device)
    except (AssertionError, RuntimeError) as error:  # no such device: parts have failed, too
        there = {"error": str(error).partition("\n")[0]}
    report = {
        "version": __version__,
        "commit": arguments.commit or None,
        "python": sys.version.split()[0],
        "machine": there,
        **summary(arguments.folder),
    }
    write(report, str(arguments.folder / "summary.json"))
    for name, reason in report["failed"].items():
        print(f"failed: {name}: {reason}", file=sys.stderr)
    sys.exit(bool(report["failed"]))


if __name__ == "__main__":
    main()
