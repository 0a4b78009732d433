r"""What it saves that a network computes anew only what a square of Square's changed.

    OMP_NUM_THREADS=1 python -m benchmarks.nearby --root data/cifar10-jpeg --weights FILE

Square on the same images with and without (`robusttrain.models.nearby`), in turns, on one thread;
its squares shrink over the queries as they do over 10,000. Times are seconds of the processor that
the process itself has used, and the least of all rounds counts. The points that both find are
compared image by image.
"""

from __future__ import annotations

import platform
import sys
import time
from typing import Any

import torch
from torch import Tensor

from benchmarks.timing import load_images, network, parser_of, report_file, write
from robusttrain.attacks import Linf, Square, Target
from robusttrain.core.allocator import keep_freed_memory
from robusttrain.core.processor import processor
from robusttrain.evaluation.engine import Engine
from robusttrain.evaluation.scenario import Scenario
from robusttrain.models import nearby

#: Bytes that a network may keep.
REMEMBERS = {"with": nearby.MEMORY, "without": 0}


def main() -> None:
    """Parse, measure, write."""
    parser = parser_of(__doc__, images=100)
    parser.add_argument("--queries", type=int, default=1000)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--output", type=report_file, default="results/benchmarks/nearby.json")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    keep_freed_memory()
    data, images, labels = load_images(arguments.root, arguments.images)
    model = network(arguments.model, arguments.weights, data).requires_grad_(False)
    attack = Square(arguments.queries, rescale=True, threat=Linf(arguments.epsilon))
    spent: dict[str, list[float]] = {way: [] for way in REMEMBERS}
    stands: dict[str, Tensor] = {}
    points: dict[str, Tensor] = {}
    asked: dict[str, float] = {}
    for _ in range(arguments.rounds):
        for way, nearby.MEMORY in REMEMBERS.items():
            engine = Engine(
                model, {"square": Scenario(attack, Target())}, survivors=True, keep_images=True
            )
            start = time.process_time()
            records, _ = engine.run(images, labels, torch.arange(len(images)))
            spent[way].append(time.process_time() - start)
            rows = records.of("square")
            assert rows.images is not None
            stands[way], points[way] = rows.score[:, 0], rows.images
            asked[way] = float(rows.queries.sum())
    report: dict[str, Any] = {
        "command": "python -m benchmarks.nearby " + " ".join(sys.argv[1:]),
        "machine": {"architecture": platform.machine(), **processor()},
        "model": arguments.model,
        "images": len(images),
        "epsilon": arguments.epsilon,
        "queries": arguments.queries,
        "stand": int(stands["with"].sum()),
        "queries_asked": asked["with"],
        "verdicts_that_differ": int((stands["with"] != stands["without"]).sum()),
        "images_whose_points_differ": int(
            (points["with"] != points["without"]).flatten(1).any(dim=1).sum()
        ),
        "seconds": {way: [round(each, 1) for each in times] for way, times in spent.items()},
        "time_relative_to_without": round(min(spent["with"]) / min(spent["without"]), 3),
    }
    write(report, arguments.output)


if __name__ == "__main__":
    main()
