"""Side by side in one run: interleaved rounds, medians, ratios.

Absolute times mean nothing on shared machines. Contenders take turns within each round, so that
whatever else the machine does hits all of them, and what is reported is a ratio of medians. Each
side runs in a process of its own, so that each can have its own memory policy; the processes take
turns too.
"""

from __future__ import annotations

import argparse
import multiprocessing
import platform
import statistics
import time
from collections.abc import Callable, Sequence
from importlib.metadata import PackageNotFoundError, version
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch
from rich.progress import track
from torch import Tensor, nn

from robusttrain.config.build import build, fit_to_data
from robusttrain.config.presets import read
from robusttrain.core.allocator import keep_freed_memory
from robusttrain.core.errors import UserError
from robusttrain.core.processor import processor
from robusttrain.data import Digits, ImageData, ImageFolder, ImageNet
from robusttrain.models.foreign import load_weights
from robusttrain.storage.files import laid_out, may_write, parsed, write_json

#: Which side keeps freed memory (`robusttrain.core.allocator`), by policy.
MEMORY = {
    "as-run": {"ours": True, "peers": False},
    "system": {"ours": False, "peers": False},
    "kept": {"ours": True, "peers": True},
}
MEMORY_HELP = (
    "who keeps freed memory. as-run: our side, as our commands do, while peers leave it to the"
    " system, as their users do; system: nobody; kept: everybody"
)
#: What ours are compared with, where it is installed.
PEERS = ("torchattacks", "foolbox", "adversarial-robustness-toolbox")
#: Keys of which every report of a benchmark has one; nothing else that is kept here has any.
REPORTS = {"machine", "reference"}
Contenders = dict[str, Callable[[], Tensor]]
_seen = 0  # images that counted models have been shown in this process


def count_images(model: nn.Module) -> None:
    """From now on, count the images that ``model`` is shown: attacks that stop early do less than
    they were told.
    """

    def add(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        global _seen
        _seen += len(inputs[0])

    model.register_forward_hook(add)


def timed(call: Callable[[], Tensor]) -> tuple[float, Tensor]:
    """Seconds of a call, with everything that it left to an accelerator, and its result."""
    _wait()
    start = time.perf_counter()
    result = call()
    _wait()
    return time.perf_counter() - start, result


def _wait() -> None:
    if torch.cuda.is_initialized():
        torch.cuda.synchronize()


def _work(
    pipe: Connection, make: Callable[..., Contenders], side: str, keeps: bool, arguments: Any
) -> None:
    """A process: build one side's contenders, then run whichever is asked for."""
    if keeps:
        keep_freed_memory()
    contenders = make(side, arguments)
    pipe.send(list(contenders))
    while (name := pipe.recv()) is not None:
        before = _seen
        seconds, result = timed(contenders[name])
        pipe.send((seconds, result.detach().cpu().numpy(), _seen - before))


def interleave(
    make: Callable[..., Contenders], arguments: Any
) -> tuple[dict[str, float], dict[str, Tensor], dict[str, int]]:
    """Median seconds of each contender, what it returned last (on the CPU), and images that its
    counted models then saw.

    One round before the first warms up.

    No rounds at all time the one that would warm up: for attacks so long that it does not matter.

    Args:
        make: ``make(side, arguments)`` gives the contenders of side "ours" or "peers"; importable
            by name.
        arguments: with ``rounds`` and ``memory``.
    """
    context = multiprocessing.get_context("spawn")
    pipes = {}
    for side, keeps in MEMORY[arguments.memory].items():
        pipes[side], theirs = context.Pipe()
        context.Process(
            target=_work, args=(theirs, make, side, keeps, arguments), daemon=True
        ).start()
        theirs.close()  # so that a process that dies ends recv() instead of blocking it
    names = [(name, pipe) for pipe in pipes.values() for name in pipe.recv()]
    spent: dict[str, list[float]] = {name: [] for name, _ in names}
    results, seen = {}, {}
    for number in track(range(arguments.rounds + 1), "rounds"):
        for name, pipe in names:
            pipe.send(name)
            seconds, result, seen[name] = pipe.recv()
            results[name] = torch.from_numpy(result)
            if number or not arguments.rounds:
                spent[name].append(seconds)
    for pipe in pipes.values():
        pipe.send(None)
    return {name: statistics.median(times) for name, times in spent.items()}, results, seen


def take_turns(contenders: Contenders, rounds: int) -> dict[str, float]:
    """Median seconds of each contender, all of them in this process; as for `interleave`, one round
    warms up, and 0 rounds time that one.
    """
    spent: dict[str, list[float]] = {name: [] for name in contenders}
    for number in range(rounds + 1):
        for name, call in contenders.items():
            seconds, _ = timed(call)
            if number or not rounds:
                spent[name].append(seconds)
    return {name: statistics.median(times) for name, times in spent.items()}


def add_device(parser: argparse.ArgumentParser) -> None:
    """Options that say where a benchmark runs."""
    parser.add_argument("--device", default="cpu", help="cpu, cuda, cuda:1, ...")
    parser.add_argument(
        "--compiled", action="store_true", help="networks through torch.compile, on every side"
    )


def compiled(model: nn.Module, arguments: argparse.Namespace) -> nn.Module:
    """The model itself, compiled in place if ``--compiled`` asks for it; copies of it are not."""
    if arguments.compiled:
        model.compile(dynamic=False)
    return model


def network(
    preset: str, weights: str | None, data: ImageData, device: str | torch.device = "cpu"
) -> nn.Module:
    """A model by preset, fitted to the data, with weights from a file if there are any."""
    node = read("model", preset)["model"]
    fit_to_data(node, data.facts(), "model")
    torch.manual_seed(0)
    model: nn.Module = build(node, "model")
    if weights:
        load_weights(model, weights)
    return model.eval().to(device)


def parser_of(doc: str | None, images: int = 200) -> argparse.ArgumentParser:
    """A parser with the options of one model on test images of a folder.

    Args:
        doc: of the benchmark.
        images: how many, where nobody says.
    """
    parser = argparse.ArgumentParser(
        description=doc, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--root", required=True, help="folder of the data, as ImageFolder reads it")
    parser.add_argument("--model", default="vgg_small", help="model preset")
    parser.add_argument("--weights", help="its weights")
    parser.add_argument("--images", type=int, default=images)
    parser.add_argument("--epsilon", type=float, default=0.031)
    return parser


def load_images(
    root: str | None, count: int, layout: str = "imagefolder", device: str | torch.device = "cpu"
) -> tuple[ImageData, Tensor, Tensor]:
    """The data module, and ``count`` of its test images (B, C, H, W) in [0, 1] with labels, chosen
    by seed 0, on a device.

    ``layout`` is "imagefolder", or "imagenet" for a folder with ``val/<wnid>/``; without a ``root``
    they are embedded digits.
    """
    data: ImageData
    if root is None:
        data = Digits(batch_size=count)
    else:
        data = (ImageNet if layout == "imagenet" else ImageFolder)(root=root, batch_size=count)
    data.limit_test(count, seed=0)
    data.setup("test")
    batch = data.on_after_batch_transfer(next(iter(data.test_dataloader())), 0)
    return data, batch.images.contiguous().to(device), batch.labels.to(device)


def right_for_all(
    models: Sequence[nn.Module], images: Tensor, labels: Tensor, count: int
) -> tuple[Tensor, Tensor]:
    """The first ``count`` images, with labels, that every model gets right."""
    right = torch.ones(len(images), dtype=torch.bool)
    with torch.no_grad():
        for model in models:
            right &= torch.cat([model(part).argmax(1) for part in images.split(32)]) == labels
    return images[right][:count], labels[right][:count]


def machine(device: str | torch.device = "cpu") -> dict[str, Any]:
    """What a ratio may depend on."""
    return {
        "architecture": platform.machine(),
        **processor(torch.device(device)),
        "versions": {name: number for name in PEERS if (number := _installed(name))},
    }


def _installed(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def write(report: dict[str, Any], path: str) -> None:
    """Print a report and keep it as JSON."""
    print(laid_out(report))
    keep(report, path)


def keep(report: dict[str, Any], path: str) -> None:
    """Keep a report as JSON."""
    write_json(report, Path(path))


def new_file(suffix: str) -> Callable[[str], str]:
    """The ``type`` of an option that names a file which is written at the end, after hours.

    Args:
        suffix: which its name has to have.

    Raises:
        ArgumentTypeError: from what is returned: a folder, another suffix, or a place that cannot
            be written to.
    """

    def file(value: str) -> str:
        path = Path(value)
        if path.is_dir():
            raise argparse.ArgumentTypeError(f"{value}: is a folder: name a FILE{suffix} in it")
        if path.suffix != suffix:
            raise argparse.ArgumentTypeError(f"{value}: must be called FILE{suffix}")
        try:
            may_write(path.parent, "folder")
        except UserError as error:
            raise argparse.ArgumentTypeError(f"{value}: {error}") from error
        return value

    return file


def report_file(value: str) -> str:
    """The ``type`` of ``--output``: a `new_file`, or a benchmark's report, which it replaces.

    Raises:
        ArgumentTypeError: as for `new_file`, or a file that holds anything else.
    """
    path = Path(new_file(".json")(value))
    if not path.exists():
        return value
    try:
        content = parsed(path.read_text())
    except (OSError, ValueError) as error:
        raise argparse.ArgumentTypeError(f"{value}: is no JSON: name another file") from error
    if not isinstance(content, dict) or not REPORTS & content.keys():
        raise argparse.ArgumentTypeError(
            f"{value}: holds something else than a benchmark's report: name another file"
        )
    return value
