"""What it saves that wide convolutions of fast copies take fewer multiplications.

    python -m benchmarks.winograd --output winograd.json

The gradient of the cross entropy with respect to the images, and the answers alone, by fast copies
in float32 (`robusttrain.models.winograd`) beside the same copies with torch's convolutions. Then
single layers, of which `CHANNELS`, `WORK` and `TILES` were read off. Contenders take turns on one
thread; times are seconds of the processor that the process itself has used, and ratios those of
medians.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from functools import partial
from statistics import median
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.settled import clock
from benchmarks.timing import Contenders, machine, report_file, write
from robusttrain import fast_copy
from robusttrain.core.allocator import keep_freed_memory
from robusttrain.models import CifarResNet
from robusttrain.models.winograd import Winograd, plain_convolutions

#: Widths of the stages and blocks in each: ResNet-18, the convolutions of WideResNet-28-10.
NETWORKS = {"resnet18": ((64, 128, 256, 512), 2), "wide": ((160, 320, 640), 4)}
#: Channels of input and output, pixels of a side, images.
LAYERS = (
    *((64, 64, 32, 64), (64, 128, 16, 64), (96, 96, 8, 64), (128, 128, 16, 64), (128, 128, 4, 64)),
    *((256, 256, 8, 64), (512, 512, 4, 64), (512, 512, 4, 4), (256, 256, 14, 16)),
)


def both(call: Callable[[], Tensor]) -> Contenders:
    """The call as it is, and with torch's convolutions."""

    def plain() -> Tensor:
        with plain_convolutions():
            return call()

    return {"ours": call, "plain": plain}


def beside_plain(call: Callable[[], Tensor], rounds: int) -> dict[str, Any]:
    """Time relative to torch's convolutions, and the largest difference relative to the largest
    number.
    """
    calls = both(call)
    spent: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(rounds):
        for name, work in calls.items():
            spent[name].append(clock(work)[0])
    ours, plain = (work() for work in calls.values())
    return {
        "time": round(median(spent["ours"]) / median(spent["plain"]), 3),
        "difference": float(f"{float((ours - plain).abs().max() / plain.abs().max()):.1e}"),
    }


def gradient(model: nn.Module, images: Tensor) -> Tensor:
    """With respect to images (B, C, H, W)."""
    points = images.detach().requires_grad_()
    logits = model(points)
    loss = F.cross_entropy(logits, logits.argmax(dim=1), reduction="sum")
    return torch.autograd.grad(loss, points)[0]


def layer(inputs: int, outputs: int) -> nn.Conv2d:
    """A convolution that takes fewer multiplications however narrow it is."""
    convolution = nn.Conv2d(inputs, outputs, 3, padding=1).requires_grad_(False)
    convolution.to(memory_format=torch.channels_last)
    convolution._conv_forward = Winograd(fewest=1, least=1)  # type: ignore[assignment]
    return convolution


@torch.no_grad()
def answers(model: nn.Module, images: Tensor) -> Tensor:
    """Without a gradient."""
    result: Tensor = model(images)
    return result


def main() -> None:
    """Parse, measure, write."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--images", type=int, default=64, help="for networks")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--output", type=report_file, default="results/benchmarks/winograd.json")
    arguments = parser.parse_args()
    keep_freed_memory()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    images = torch.rand(arguments.images, 3, 32, 32)
    networks = {}
    for name, (widths, blocks) in NETWORKS.items():
        copy = fast_copy(CifarResNet(widths=widths, blocks=blocks).eval())
        networks[name] = {
            "gradient": beside_plain(partial(gradient, copy, images), arguments.rounds),
            "answers": beside_plain(partial(answers, copy, images), arguments.rounds),
        }
    layers = {}
    for inputs, outputs, side, count in LAYERS:
        points = torch.randn(count, inputs, side, side).to(memory_format=torch.channels_last)
        named = f"{inputs} to {outputs} channels, {side} x {side}, {count} images"
        work = partial(answers, layer(inputs, outputs), points)
        layers[named] = beside_plain(work, arguments.rounds)
    report = {
        "command": "python -m benchmarks.winograd " + " ".join(sys.argv[1:]),
        "machine": machine(),
        "images": arguments.images,
        "networks": networks,
        "layers": layers,
    }
    write(report, arguments.output)


if __name__ == "__main__":
    main()
