"""The audit as a part of an evaluation: before the attacks, after them, and kept in the journal."""

from __future__ import annotations

from typing import Any

import torch

from robusttrain.core.telling import Say
from robusttrain.data import ImageData
from robusttrain.data.batches import Split, seeded_order
from robusttrain.evaluation.audit import Audit
from robusttrain.evaluation.module import Evaluation
from robusttrain.storage.files import parsed, write_json
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
    """Give the audit its candidates, chosen by the seed among the evaluation's images, and say what
    the audit finds.
    """
    split: Split = data.test_dataloader().dataset  # type: ignore[assignment]
    # In the seed's order: the audit takes the first that are right, and a folder's images lie class
    # by class.
    chosen = split.subset[seeded_order(len(split), seed, "audit")[: audit.candidates]]
    batch = data.test_images(chosen)
    evaluation.to(device)
    for finding in audit.before(*(part.to(device) for part in batch)):
        if finding.severity in ("masked", "weak"):
            say(f"audit: {finding.check}: {finding.measured}; {finding.remedy}")


def journalled_audit(journal: Journal, images: int | None) -> dict[str, Any]:
    """What an earlier audit of this very run, on as many images, found; empty if there was none."""
    try:
        entry = parsed((journal.folder / "audit.json").read_text())
        same = entry["asked"] == images and entry["run"] == journal.run
        audited: dict[str, Any] = entry["found"] if same else {}
    except (FileNotFoundError, ValueError, KeyError, TypeError):
        return {}
    return audited


def finish_audit(
    audit: Audit, evaluation: Evaluation, device: torch.device, journal: Journal, say: Say
) -> dict[str, Any]:
    """Audit the attacks' results. The journal keeps the audit, so a finished run costs nothing.

    Of several processes that share the journal's folder one audits, and the others wait for it.
    """
    with alone(journal.folder / "audit", "the audit", say):
        if audited := journalled_audit(journal, audit.images):
            return audited
        evaluation.to(device)
        audit.after(evaluation.records)
        audited = audit.as_dict()
        kept = {"asked": audit.images, "run": journal.run, "found": audited}
        write_json(kept, journal.folder / "audit.json")
        return audited
