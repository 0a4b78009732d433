"""Memory of EOT over its draws, on one device.

    python -m benchmarks.draws --device cuda --output draws.json

The peak of one step of BPDA-I with EOT above what the models hold: torch's tensors on a GPU, a
process of its own on a CPU (`benchmarks.memory`).
"""

from __future__ import annotations

import argparse
import sys

from benchmarks.eot import needed
from benchmarks.timing import machine, report_file, write


def main() -> None:
    """Parse, measure, write."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--root", help="image folder with test/; by default embedded digits")
    parser.add_argument("--weights", help="of f_b, a vgg_small")
    parser.add_argument("--model", default="resnet_small", help="model preset of f_a (untrained)")
    parser.add_argument("--images", type=int, default=100)
    parser.add_argument("--draws", type=int, nargs="+", default=[1, 5, 20, 100])
    parser.add_argument("--precision", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--device", default="cpu", help="cpu, cuda, cuda:1, ...")
    parser.add_argument("--output", type=report_file, default="results/benchmarks/draws.json")
    parser.set_defaults(compiled=False)
    arguments = parser.parse_args()
    if arguments.device != "cpu":
        needed("eot", 1, arguments)  # the first call on a GPU pays for libraries, too
    mib = {draws: needed("eot", draws, arguments) for draws in arguments.draws}
    fewest = mib[min(mib)]
    report = {
        "command": "python -m benchmarks.draws " + " ".join(sys.argv[1:]),
        "machine": machine(arguments.device),
        "images": arguments.images,
        "precision": arguments.precision,
        "peak_mib_above_start": {str(draws): round(each, 1) for draws, each in mib.items()},
        "relative_to_the_fewest_draws": {
            str(draws): round(each / fewest, 3) if fewest else None for draws, each in mib.items()
        },
    }
    write(report, arguments.output)


if __name__ == "__main__":
    main()
