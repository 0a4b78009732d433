"""What evaluate.py leaves on disk beside its results: the journal on the way, images and verdicts at the end."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from jsonargparse import Namespace

from robusttrain.commands.train import PLACES
from robusttrain.config.command_line import plain
from robusttrain.core.console import console, first_process
from robusttrain.core.version import __version__
from robusttrain.evaluation import Engine, Evaluation
from robusttrain.models.defended import DefendedClassifier
from robusttrain.storage.journal import Journal, weights_of
from robusttrain.storage.locks import alone
from robusttrain.storage.weights import save_tensors


def fingerprint(config: Namespace, target: DefendedClassifier, nodes: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """All that the figures depend on, but for precisions and for sources that an attacker may have to train first."""
    data = plain(config.data)
    return {
        "target": {"model": plain(config.model), "defense": plain(config.defense), "weights": weights_of(target)},
        "attacks": nodes,
        "data": {
            "class_path": data["class_path"],
            # Where the images lie and how they are loaded changes nothing: every batch is compared with what it was.
            **{key: value for key, value in (data.get("init_args") or {}).items() if key not in PLACES},
        },
        "images": config.images,
        "epsilon": config.epsilon,
        "draws": config.draws if target.random else 1,
        "survivors": config.survivors,
        "seed": config.seed,
        "versions": {"robusttrain": __version__, "torch": torch.__version__},
    }


def open_journal(folder: Path, known: dict[str, Any], engine: Engine, fresh: bool) -> Journal:
    """Where finished batches are kept; what an interrupted run of the same settings left is found there.

    Args:
        folder: of the journal.
        known: the `fingerprint`.
        engine: whose sources complete it.
        fresh: whether to drop what an unfinished run left.

    Raises:
        UserError: an unfinished run of other settings lies there; what differs is named.
    """

    def say(line: str) -> None:
        console.print(line, soft_wrap=True)

    whole = {**known, "sources": {name: weights_of(source) for name, source in engine.sources.items()}}
    with alone(folder, "the journal", say):
        # Processes that Lightning starts find what the first one made: they drop nothing.
        journal = Journal(folder, whole, fresh and first_process(), say)
    if journal.entries:
        console.print(f"going on in {folder}: {journal.entries} finished batches of attacks found", soft_wrap=True)
    return journal


def keep(evaluation: Evaluation, output: Path, config: Namespace) -> None:
    """Write images and verdicts on request."""
    records = evaluation.records
    shared = {"index": records["index"], "label": records["label"]}
    if config.save_verdicts:
        save_tensors(
            {name: values for name, values in records.items() if not name.endswith("/images")},
            output / "verdicts.safetensors",
        )
    if config.save_images:
        for name in evaluation.engine.scenarios:
            save_tensors({**shared, "images": records[f"{name}/images"]}, output / f"{name}.safetensors")
