"""The audit as a part of an evaluation: before the attacks, after them, and kept with what they
found.
"""

from __future__ import annotations

import json
from typing import Any

import torch

from robusttrain.core.telling import Say
from robusttrain.data import ImageData
from robusttrain.data.batches import Split, seeded_order
from robusttrain.evaluation.audit import Audit
from robusttrain.evaluation.module import Evaluation
from robusttrain.storage.files import write_json
from robusttrain.storage.journal import Journal
from robusttrain.storage.locks import alone


def images_of(data: ImageData) -> int:
    """How many test images the evaluation has."""
    return len(data.test_dataloader().dataset)  # type: ignore[arg-type]


def begin_audit(
    audit: Audit,
    evaluation: Evaluation,
    data: ImageData,
    seed: int,
    device: torch.device,
    say: Say,
) -> None:
    """Give the audit its candidates, chosen by the seed among the evaluation's images, and tell
    what it finds.
    """
    split: Split = data.test_dataloader().dataset  # type: ignore[assignment]
    chosen = split.subset[seeded_order(len(split), seed, "audit")[: audit.candidates].sort().values]
    batch = data.test_images(chosen)
    evaluation.to(device)
    for found in audit.before(*(part.to(device) for part in batch)):
        if found.severity in ("masked", "weak"):
            say(f"audit: {found.check}: {found.measured}; {found.remedy}")


def kept_audit(journal: Journal, images: int | None) -> dict[str, Any]:
    """What an audit of this very run, on as many images, has found before; empty if there was
    none.
    """
    try:
        kept = json.loads((journal.folder / "audit.json").read_text())
        found: dict[str, Any] = kept["found"] if kept["asked"] == images else {}
    except (FileNotFoundError, ValueError, KeyError, TypeError):
        return {}
    return found


def finish_audit(
    audit: Audit, evaluation: Evaluation, device: torch.device, journal: Journal, say: Say
) -> dict[str, Any]:
    """The rest of an audit, on what the attacks found; kept, so that a finished run costs nothing.

    Of several processes that share the journal's folder one does it, and the others wait for what
    it finds.
    """
    with alone(journal.folder / "audit", "the audit", say):
        if found := kept_audit(journal, audit.images):
            return found
        evaluation.to(device)
        audit.after(evaluation.records)
        found = audit.told()
        write_json({"asked": audit.images, "found": found}, journal.folder / "audit.json")
        return found
