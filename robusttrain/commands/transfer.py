"""What ``python evaluate.py --models A B ...`` does: parse, run, tell."""

from __future__ import annotations

from pathlib import Path

from rich.text import Text

from robusttrain.config.transfer import read_plan
from robusttrain.core.console import ALOUD, console, say
from robusttrain.running.transferring import measure_transfer


def run(arguments: list[str], written: list[Path] | None = None) -> None:
    """Craft on each model and test on all, as the command line says.

    Args:
        arguments: of the command line.
        written: gets the folders that are written into, if anybody asks.
    """
    plan = read_plan(arguments)
    if written is not None:
        written += [Path(plan.output), Path(plan.crafted)]
    for name, measured in measure_transfer(plan, ALOUD).items():
        console.print(Text(name, style="bold"))
        for kind, matrix in measured.items():
            if kind.endswith("top1"):
                console.print(matrix.table())
    say(
        f"written: {Path(plan.output) / 'results.json'}, with a heat map of every matrix and"
        " images.png"
    )
