"""Side by side in one run: interleaved rounds, medians, ratios.

Absolute times mean nothing on shared machines. Contenders take turns within each round, so that whatever else the
machine does hits all of them, and what is reported is a ratio of medians.
"""

from __future__ import annotations

import json
import platform
import statistics
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from rich.progress import track
from torch import Tensor, nn

from robusttrain.build import build, fit_to_data
from robusttrain.data import ImageFolder
from robusttrain.presets import read
from robusttrain.weights import load_weights


def interleave(contenders: dict[str, Callable[[], Tensor]], rounds: int) -> tuple[dict[str, float], dict[str, Tensor]]:
    """Median seconds of each contender, and what it returned last. One round before the first warms up."""
    spent: dict[str, list[float]] = {name: [] for name in contenders}
    results = {}
    for number in track(range(rounds + 1), "rounds"):
        for name, run in contenders.items():
            start = time.perf_counter()
            results[name] = run()
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            if number:
                spent[name].append(time.perf_counter() - start)
    return {name: statistics.median(times) for name, times in spent.items()}, results


def network(preset: str, weights: str | None, data: ImageFolder) -> nn.Module:
    """A model by preset, fitted to the data, with weights from a file if there are any."""
    node = read("model", preset)["model"]
    fit_to_data(node, data.facts(), "model")
    torch.manual_seed(0)
    model: nn.Module = build(node, "model")
    if weights:
        load_weights(model, weights)
    return model.eval()


def test_images(root: str, count: int) -> tuple[ImageFolder, Tensor, Tensor]:
    """The data module, and ``count`` of its test images (B, C, H, W) in [0, 1] with labels, chosen by seed 0."""
    data = ImageFolder(root=root, batch_size=count)
    data.limit_test(count, seed=0)
    data.setup("test")
    batch = data.on_after_batch_transfer(next(iter(data.test_dataloader())), 0)
    return data, batch.images.contiguous(), batch.labels


def machine() -> dict[str, Any]:
    """What a ratio may depend on."""
    return {
        "threads": torch.get_num_threads(),
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else platform.machine(),
        "versions": {name: version(name) for name in ("torch", "torchattacks", "foolbox")},
    }


def write(report: dict[str, Any], path: str) -> None:
    """Print a report and keep it as JSON."""
    text = json.dumps(report, indent=2)
    print(text)
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    Path(path).write_text(text + "\n")
