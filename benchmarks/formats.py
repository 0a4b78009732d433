"""What a gradient costs in each memory format, and what exact float32 costs on a GPU.

    python -m benchmarks.formats --device cuda --output formats.json

Fast copies are channels_last everywhere (`robusttrain.models.fast`), which was measured on CPUs;
evaluations turn TF32 off (`robusttrain.core.repeatable`). Here both stand beside what they replace:
the gradient of the cross entropy with respect to the images, rows in turns, ratios of medians.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from contextlib import nullcontext
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.timing import load_images, machine, network, report_file, take_turns, write
from robusttrain import fast_copy
from robusttrain.core.memory_format import use_plain_format
from robusttrain.core.repeatable import repeatable

FORMATS = {"channels_last": torch.channels_last, "rows": torch.contiguous_format}
TYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
#: What the others are compared with: fast copies as evaluations ask them.
OURS = "float32, channels_last"


def gradient_of(model: nn.Module, images: Tensor, labels: Tensor, exact: bool) -> Tensor:
    """With respect to the images (B, C, H, W); ``exact``: as evaluations compute, else as torch
    does by default on a GPU, in TF32.
    """
    points = images.detach().requires_grad_()
    with repeatable() if exact else nullcontext():
        loss = F.cross_entropy(model(points).float(), labels, reduction="sum")
        return torch.autograd.grad(loss, points)[0]


def contenders(
    model: nn.Module, images: Tensor, labels: Tensor, gpu: bool
) -> dict[str, Callable[[], Tensor]]:
    """A gradient in each type and format, and in TF32 where there is a GPU."""
    calls: dict[str, Callable[[], Tensor]] = {}
    for kind, dtype in TYPES.items():
        for layout, memory_format in FORMATS.items():
            copied = fast_copy(model, dtype).network
            if layout == "rows":
                use_plain_format(copied)
            points = images.to(dtype, memory_format=memory_format)
            gradient = partial(gradient_of, copied, points, labels)
            calls[f"{kind}, {layout}"] = partial(gradient, exact=True)
            if gpu and kind == "float32":
                calls[f"TF32, {layout}"] = partial(gradient, exact=False)
    return calls


def main() -> None:
    """Parse, measure, write."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--root", help="image folder with test/; by default embedded digits")
    parser.add_argument("--weights", help="of the vgg_small")
    parser.add_argument(
        "--models", nargs="+", default=["vgg_small", "resnet18"], help="model presets"
    )
    parser.add_argument("--images", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--device", default="cpu", help="cpu, cuda, cuda:1, ...")
    parser.add_argument("--output", type=report_file, default="results/benchmarks/formats.json")
    arguments = parser.parse_args()
    data, images, labels = load_images(arguments.root, arguments.images, device=arguments.device)
    relative = {}
    for name in arguments.models:
        weights = arguments.weights if name == "vgg_small" else None
        model = network(name, weights, data, arguments.device)
        calls = contenders(model, images, labels, images.device.type == "cuda")
        seconds = take_turns(calls, arguments.rounds)
        relative[name] = {each: round(to / seconds[OURS], 3) for each, to in seconds.items()}
    report = {
        "command": "python -m benchmarks.formats " + " ".join(sys.argv[1:]),
        "machine": machine(arguments.device),
        "images": len(images),
        "time_relative_to": OURS,
        "gradients": relative,
    }
    write(report, arguments.output)


if __name__ == "__main__":
    main()
