"""``evaluate.py --precision``: in what attacks differentiate, chosen and told."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from robusttrain.core.rng import Rng
from robusttrain.core.telling import Say
from robusttrain.data import ImageData
from robusttrain.evaluation.engine import Scenario, check_classes
from robusttrain.evaluation.precision import Speeds, choose, measure_speeds_of
from robusttrain.models.defended import DefendedClassifier
from robusttrain.storage.files import hash_of_json, write_json
from robusttrain.storage.locks import alone


def choose_precisions(
    asked: str,
    target: DefendedClassifier,
    attacks: Mapping[str, Scenario],
    data: ImageData,
    seed: int,
    run: Run,
    device: torch.device,
    say: Say,
) -> dict[str, str]:
    """The precision of each attack, "float32" or "bfloat16", told in one line where it was to be
    chosen.

    Args:
        asked: the option: "auto", "float32" or "bfloat16".
        target: the defended classifier.
        attacks: by name.
        data: set up for "test".
        seed: of the evaluation.
        run: which evaluation this is. It goes on as it began, whatever is faster by now, and all of
            its processes do as the first one chose.
        device: where the attacks will run.
        say: takes the line.
    """
    if asked != "auto":
        return dict.fromkeys(attacks, asked)
    with alone(run.output / "precision", "the choice of a precision", say):
        if (before := run.chosen()) is not None:
            say(_told(before.values(), "this run began so"))
            return before
        speeds = None
        if any(each.attack.rounds_well for each in attacks.values()):
            speeds = measure_on(target, data, seed, device)
        found = choose(attacks, speeds.better if speeds else "float32")
        run.note(found)
    why = str(speeds) if speeds else "these attacks compare losses or distances"
    exact = [name for name, kind in found.items() if kind == "float32"]
    if exact and len(exact) < len(found):
        why += f" and rounding would weaken {', '.join(exact)}"
    say(_told(found.values(), why))
    return found


@dataclass(frozen=True)
class Run:
    """An evaluation, by its folder and all that its figures depend on but for precisions.

    Args:
        output: its folder.
        known: its fingerprint.
        fresh: whether what was chosen before does not count.
    """

    output: Path
    known: Mapping[str, Any]
    fresh: bool = False

    @property
    def _file(self) -> Path:
        return self.output / ".precision.json"

    def chosen(self) -> dict[str, str] | None:
        """What a process of this very run chose before."""
        if self.fresh or not self._file.is_file():
            return None
        try:
            kept = json.loads(self._file.read_text())
        except ValueError:
            return None
        same = isinstance(kept, dict) and kept.get("run") == hash_of_json(self.known)
        return dict(kept["precisions"]) if same else None

    def note(self, precisions: Mapping[str, str]) -> None:
        """Let other processes, and a later start, find the choice."""
        write_json({"run": hash_of_json(self.known), "precisions": dict(precisions)}, self._file)


def measure_on(
    target: DefendedClassifier, data: ImageData, seed: int, device: torch.device
) -> Speeds:
    """`measure_speeds` of a target's classifier on what it sees of a first batch of test images."""
    batch = data.first_test_batch()
    check_classes(target, batch.images, data.facts().num_classes)
    target.to(device)
    speeds = measure_speeds_of(
        target, batch.images.to(device), Rng.for_images(seed, batch.indices.to(device))
    )
    target.cpu()
    return speeds


def _told(chosen: Iterable[Any], why: str) -> str:
    kinds = " and ".join(sorted({*chosen}))
    return f"precision: attacks differentiate in {kinds}, since {why}; verdicts are float32 passes"
