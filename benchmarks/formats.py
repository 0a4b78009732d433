"""What a gradient costs in each memory format, and what exact float32 costs on a GPU.

    python -m benchmarks.formats --device cuda --output formats.json

Fast copies are channels_last everywhere (`robusttrain.models.fast`), which was measured on CPUs;
evaluations turn TF32 off (`robusttrain.core.repeatable`). Here both stand beside what they replace:
the gradient of the cross entropy with respect to the images, rows in turns, ratios of medians.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from copy import deepcopy

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


@contextmanager
def rounding() -> Iterator[None]:
    """TF32, and whichever algorithms cuDNN likes, as torch has it by default."""
    before = torch.backends.cudnn.allow_tf32, torch.backends.cudnn.deterministic
    torch.backends.cudnn.allow_tf32, torch.backends.cudnn.deterministic = True, False
    try:
        yield
    finally:
        torch.backends.cudnn.allow_tf32, torch.backends.cudnn.deterministic = before


def gradient_of(model: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
    """With respect to the images (B, C, H, W)."""
    points = images.detach().requires_grad_()
    loss = F.cross_entropy(model(points).float(), labels, reduction="sum")
    return torch.autograd.grad(loss, points)[0]


def contenders(
    model: nn.Module, images: Tensor, labels: Tensor, gpu: bool
) -> dict[str, Callable[[], Tensor]]:
    """A gradient in each type and format, and in TF32 where there is a GPU."""
    calls: dict[str, Callable[[], Tensor]] = {}

    def add(kind: str, layout: str, context: Callable[..., object], name: str) -> None:
        copied = deepcopy(fast_copy(model, TYPES[kind]).network)
        if layout == "rows":
            use_plain_format(copied)
        points = images.to(TYPES[kind], memory_format=FORMATS[layout])
        calls[name] = lambda: context()(gradient_of)(copied, points, labels)  # type: ignore[operator]

    for kind in TYPES:
        for layout in FORMATS:
            add(kind, layout, repeatable, f"{kind}, {layout}")
            if gpu and kind == "float32":
                add(kind, layout, rounding, f"TF32, {layout}")
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
