"""Memory of an attack on an ensemble, by the number of its models.

    python -m benchmarks.ensemble --root data/cifar10-jpeg --model resnet18 --output ensemble.json

The peak of one step of PGD in a process of its own, above what it held before with all models
loaded: it should not grow with their number. Beside it, what the same step needs where all members'
activations are held at once, as in a plain mean of logits.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable

import torch
from torch import Tensor, nn

from benchmarks.memory import peak
from benchmarks.timing import load_images, machine, network, report_file, write
from robusttrain import Rng, fast_copy
from robusttrain.attacks import ProjectedGradient
from robusttrain.attacks.sources.surrogates import fused


class PlainMean(nn.Module):
    """What one writes first: the mean of the members' logits."""

    def __init__(self, members: list[nn.Module]) -> None:
        super().__init__()
        self.members = nn.ModuleList(members)

    def forward(self, images: Tensor) -> Tensor:
        """Logits (B, K)."""
        return torch.stack([member(images) for member in self.members]).mean(dim=0)


def step(version: str, count: int, arguments: argparse.Namespace) -> Callable[[], Tensor]:
    """One step of PGD on ``count`` untrained models: weights do not matter for memory."""
    data, images, labels = load_images(arguments.root, arguments.images, arguments.data)
    members: list[nn.Module] = [
        fast_copy(network(arguments.model, None, data), torch.float32) for _ in range(count)
    ]
    source = PlainMean(members) if version == "plain" else fused(members, None, version)
    rng = Rng.for_images(0, torch.arange(len(images)))
    with torch.no_grad():
        source(images[:1])  # loads what every attack loads
    return lambda: ProjectedGradient(1, 0.002, random_start=False)(source, images, labels, rng)


def main() -> None:
    """Parse, measure, write."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--root", required=True, help="folder of the data")
    parser.add_argument(
        "--data", choices=("imagefolder", "imagenet"), default="imagefolder", help="its layout"
    )
    parser.add_argument("--model", default="resnet_small", help="model preset of the members")
    parser.add_argument("--images", type=int, default=64, help="one batch of this many images")
    parser.add_argument(
        "--models", type=int, nargs="+", default=[1, 2, 4, 8], help="numbers of models"
    )
    parser.add_argument("--output", type=report_file, default="results/benchmarks/ensemble.json")
    arguments = parser.parse_args()
    mib = {
        version: {
            str(count): round(peak(step, version, count, arguments)) for count in arguments.models
        }
        for version in ("logits", "probabilities", "losses", "plain")
    }
    few, many = str(arguments.models[0]), str(arguments.models[-1])
    report = {
        "command": "python -m benchmarks.ensemble " + " ".join(sys.argv[1:]),
        "machine": machine(),
        "images": arguments.images,
        "peak_mib_above_start": mib,
        "peak_with_most_models_relative_to_fewest": {
            version: round(max(1, row[many]) / max(1, row[few]), 3) for version, row in mib.items()
        },
    }
    write(report, arguments.output)


if __name__ == "__main__":
    main()
