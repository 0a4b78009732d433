"""How many images get another verdict in another run of the same evaluation?

    python -m benchmarks.same_verdicts RUN RUN... --output same.json

Each RUN is an output folder of ``evaluate.py``; all are compared with the
first one.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from benchmarks.timing import report_file, write
from robusttrain.core.errors import UserError
from robusttrain.evaluation.records import Records


def main() -> None:
    """Parse, compare, write."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("runs", nargs="+", help="output folders; the first one is the reference")
    parser.add_argument(
        "--output", type=report_file, default="results/benchmarks/same_verdicts.json"
    )
    arguments = parser.parse_args()
    first, *others = (Records.read(Path(run) / "verdicts.safetensors") for run in arguments.runs)
    compared = {}
    for run, other in zip(arguments.runs[1:], others, strict=True):
        if not first.index.equal(other.index):
            raise UserError(f"{run} holds other images than {arguments.runs[0]}")
        compared[run] = {
            name: {
                "images_with_another_verdict": int(differ.any(dim=1).sum()),
                "verdicts_that_differ": int(differ.sum()),
                "verdicts": differ.numel(),
            }
            for name in first.rows
            if (differ := first.of(name).score != other.of(name).score) is not None
        }
    write(
        {"reference": arguments.runs[0], "images": len(first), "differences": compared},
        arguments.output,
    )


if __name__ == "__main__":
    main()
