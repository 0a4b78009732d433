"""``evaluate.py --precision``, ``--compile``: how attacks differentiate, chosen once for a run."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch

from robusttrain.core.repeatable import repeatable
from robusttrain.core.rng import Rng
from robusttrain.core.telling import Say
from robusttrain.data import ImageData
from robusttrain.evaluation.compiling import (
    PLAIN,
    Choice,
    Work,
    choose_mode,
    kept,
    mode_in,
)
from robusttrain.evaluation.precision import (
    Speeds,
    asked_for,
    choose,
    measure_speeds_of,
    weakened,
)
from robusttrain.evaluation.scenario import Scenario
from robusttrain.evaluation.taking import check_classes
from robusttrain.models.compiling import Mode
from robusttrain.models.defended import DefendedClassifier
from robusttrain.storage.files import hash_of_json, parsed, write_json
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
    """The precision of each attack, "float32" or "bfloat16".

    One line says what was chosen, if the option is "auto", or which attacks the asked one may
    weaken.

    Args:
        asked: the option: "auto", "float32" or "bfloat16".
        target: the defended classifier.
        attacks: by name.
        data: set up for "test".
        seed: of the evaluation.
        run: the evaluation. It goes on with the precisions of its first process, whatever is
            faster by now.
        device: where the attacks will run.
        say: takes the line.
    """
    if asked != "auto":
        precisions = asked_for(asked, attacks)
        if weak := weakened(precisions, attacks):
            say(
                f"precision: {asked} as asked; its rounding may weaken {', '.join(weak)}, which"
                " --precision auto leaves in float32"
            )
        return precisions
    with alone(run.output / "precision", "the choice of a precision", say):
        if (before := run.chosen()) is not None:
            say(_sentence(before.values(), "this run began so"))
            return before
        speeds = None
        if any(each.attack.rounds_well for each in attacks.values()):
            speeds = measure_on(target, data, seed, device)
        precisions = choose(attacks, speeds.better if speeds else "float32")
        run.note(precisions)
    why = str(speeds) if speeds else "these attacks compare losses or distances"
    exact = [name for name, kind in precisions.items() if kind == "float32"]
    if exact and len(exact) < len(precisions):
        why += f" and rounding would weaken {', '.join(exact)}"
    say(_sentence(precisions.values(), why))
    return precisions


@repeatable()
def choose_compilation(
    asked: str,
    works: Callable[[], Sequence[Work]],
    run: Run,
    device: torch.device,
    say: Say,
    before: Mode | None = None,
) -> Choice:
    """How attacks take gradients. One line says what was chosen, unless nobody asked.

    Args:
        asked: the option: "auto", "off" or "on".
        works: finds the gradients that the attacks will take.
        run: the evaluation. It goes on with the choice of its first process.
        device: where the attacks will run.
        say: takes the line.
        before: what a run chose that is repeated.
    """
    if before is None and asked == "off":
        return PLAIN
    with alone(run.output / run.kind, "the choice of how gradients are taken", say):
        noted = None if before else run.chosen()
        if before is not None:
            choice = kept(before, works() if before != "off" else (), device, "that run did so")
        elif noted is not None:
            mode = mode_in({"compile": noted})
            choice = kept(mode, works() if mode != "off" else (), device, "this run began so")
        else:
            choice = choose_mode(asked, works(), device)
        run.note(choice.to_json())
    if before != "off":
        say(str(choice))
    return choice


@dataclass(frozen=True)
class Run:
    """An evaluation: its folder, and all that its figures depend on except what is chosen.

    Args:
        output: its folder.
        settings: its fingerprint.
        fresh: whether to forget an earlier choice.
        kind: what is chosen.
    """

    output: Path
    settings: Mapping[str, Any]
    fresh: bool = False
    kind: Literal["precision", "compilation"] = "precision"

    @property
    def _file(self) -> Path:
        return self.output / f".{self.kind}.json"

    def chosen(self) -> dict[str, str] | None:
        """What a process of this very run chose before; None if none did."""
        if self.fresh or not self._file.is_file():
            return None
        try:
            noted = parsed(self._file.read_text())
        except ValueError:
            return None
        same = isinstance(noted, dict) and noted.get("run") == hash_of_json(self.settings)
        return dict(noted[f"{self.kind}s"]) if same else None

    def note(self, choice: Mapping[str, str]) -> None:
        """Let other processes, and a later start, find the choice."""
        noted = {"run": hash_of_json(self.settings), f"{self.kind}s": dict(choice)}
        write_json(noted, self._file)


@repeatable()
def measure_on(
    target: DefendedClassifier, data: ImageData, seed: int, device: torch.device
) -> Speeds:
    """`measure_speeds` of a target's classifier, on its inputs for a first batch of test images."""
    batch = data.first_test_batch()
    check_classes(target, batch.images, data.facts().num_classes)
    target.to(device)
    speeds = measure_speeds_of(
        target, batch.images.to(device), Rng.for_images(seed, batch.indices.to(device))
    )
    target.cpu()
    return speeds


def _sentence(chosen: Iterable[Any], why: str) -> str:
    kinds = " and ".join(sorted({*chosen}))
    return f"precision: attacks differentiate in {kinds}, since {why}; verdicts are float32 passes"
