"""``evaluate.py --precision``: in what attacks differentiate, chosen and told."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch

from robusttrain.cli import say
from robusttrain.data import ImageData
from robusttrain.defended import DefendedClassifier
from robusttrain.evaluation import Scenario, check_classes
from robusttrain.evaluation.precision import Speeds, choose, measure_speeds_of
from robusttrain.rng import Rng


def choose_precisions(
    asked: str,
    target: DefendedClassifier,
    attacks: Mapping[str, Scenario],
    data: ImageData,
    seed: int,
    before: Mapping[str, str] | None,
    device: torch.device,
) -> dict[str, str]:
    """The precision of each attack, "float32" or "bfloat16", told in one line where it was to be chosen.

    Args:
        asked: the option: "auto", "float32" or "bfloat16".
        target: the defended classifier.
        attacks: by name.
        data: set up for "test".
        seed: of the evaluation.
        before: what a run of these settings began with: it goes on so, whatever is faster by now.
        device: where the attacks will run.
    """
    if asked != "auto":
        return dict.fromkeys(attacks, asked)
    if before is not None:
        _tell(before.values(), "this run began so")
        return dict(before)
    speeds = None
    if any(each.attack.rounds_well for each in attacks.values()):
        speeds = measure_on(target, data, seed, device)
    found = choose(attacks, speeds.better if speeds else "float32")
    why = str(speeds) if speeds else "these attacks compare losses or distances"
    exact = [name for name, kind in found.items() if kind == "float32"]
    if exact and len(exact) < len(found):
        why += f" and rounding would weaken {', '.join(exact)}"
    _tell(found.values(), why)
    return found


def measure_on(target: DefendedClassifier, data: ImageData, seed: int, device: torch.device) -> Speeds:
    """`measure_speeds` of a target's classifier on what it sees of a first batch of test images."""
    batch = data.on_after_batch_transfer(next(iter(data.test_dataloader())), 0)
    check_classes(target, batch.images, data.facts().num_classes)
    target.to(device)
    speeds = measure_speeds_of(target, batch.images.to(device), Rng.for_images(seed, batch.indices.to(device)))
    target.cpu()
    return speeds


def _tell(chosen: Iterable[Any], why: str) -> None:
    kinds = " and ".join(sorted({*chosen}))
    say(f"precision: attacks differentiate in {kinds}, since {why}; verdicts are float32 passes")
