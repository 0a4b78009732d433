"""What an evaluation leaves on disk beside its results: the journal on the way, images and verdicts
at the end.
"""

from __future__ import annotations

import platform
import shlex
import sys
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from robusttrain.core.processor import processor
from robusttrain.core.telling import Say
from robusttrain.core.version import __version__
from robusttrain.data import ImageData
from robusttrain.evaluation.engine import Engine
from robusttrain.evaluation.module import Evaluation
from robusttrain.evaluation.plan import PLACES, EvaluationPlan
from robusttrain.evaluation.report import SCHEMA, VERDICTS
from robusttrain.models.defended import DefendedClassifier
from robusttrain.storage.files import hash_of_weights
from robusttrain.storage.journal import Journal, weights_of
from robusttrain.storage.locks import alone
from robusttrain.storage.weights import save_tensors

#: The images that fell, beside results.json.
EXAMPLES = "examples.safetensors"
#: Packages that a figure may depend on.
VERSIONS = ("torchvision", "pytorch-lightning", "timm")


def fingerprint(plan: EvaluationPlan, target: DefendedClassifier) -> dict[str, Any]:
    """All that the figures depend on, but for precisions and for sources that an attacker may have
    to train first.
    """
    arguments = plan.data.get("init_args") or {}
    return {
        "target": {"model": plan.model, "defense": plan.defense, "weights": weights_of(target)},
        "attacks": plan.attacks,
        "data": {
            "class_path": plan.data["class_path"],
            # Where the images lie and how they are loaded changes nothing: every batch is compared
            # with what it was.
            **{key: value for key, value in arguments.items() if key not in PLACES},
        },
        "images": plan.images,
        "epsilon": plan.epsilon,
        "draws": plan.draws if target.random else 1,
        "survivors": plan.survivors,
        "seed": plan.seed,
        "versions": {"robusttrain": __version__, "torch": torch.__version__},
    }


def explained(
    plan: EvaluationPlan,
    evaluation: Evaluation,
    target: DefendedClassifier,
    told: str,
    unfit: Mapping[str, str],
    precisions: Mapping[str, str],
    device: torch.device,
    data: ImageData,
) -> dict[str, Any]:
    """The content of results.json: the figures, and all that they depend on.

    Args:
        plan: what was evaluated.
        evaluation: after its run.
        target: the model under attack.
        told: how the report names it.
        unfit: attacks of suites that do not apply, and why.
        precisions: of the attacks.
        device: where they ran.
        data: the images.
    """
    return {
        "schema": SCHEMA,
        "command": shlex.join(["python", *sys.argv]),
        "target": told,
        "weights": hash_of_weights(target),
        "data": plan.data_name,
        "classes": data.class_names,
        "data_notes": data.notes,
        **evaluation.found,
        "indices": evaluation.records.index.tolist(),
        "left_out": dict(unfit),
        "precision": {"asked": plan.precision, "attacks": dict(precisions)},
        "processor": processor(device),
        "versions": {
            "robusttrain": __version__,
            "torch": torch.__version__,
            **{name: version(name) for name in VERSIONS},
            "python": platform.python_version(),
        },
        "plan": plan.to_json(),
    }


def open_journal(
    folder: Path, known: dict[str, Any], engine: Engine, fresh: bool, say: Say
) -> Journal:
    """Where finished batches are kept; what an interrupted run of the same settings left is found
    there.

    Args:
        folder: of the journal.
        known: the `fingerprint`.
        engine: whose sources complete it.
        fresh: whether to drop what an unfinished run left; of several processes that Lightning
            starts only the first one may.
        say: takes lines.

    Raises:
        UserError: an unfinished run of other settings lies there; what differs is named.
    """
    whole = {
        **known,
        "sources": {name: weights_of(source) for name, source in engine.sources.items()},
    }
    with alone(folder, "the journal", say):
        journal = Journal(folder, whole, fresh, say)
    if journal.entries:
        say(f"going on in {folder}: {journal.entries} finished batches of attacks found")
    return journal


def keep(evaluation: Evaluation, plan: EvaluationPlan, device: torch.device) -> None:
    """Write verdicts and examples of images that fell, and all images on request; what an earlier
    run left of these goes.
    """
    records, output = evaluation.records, Path(plan.output)
    for name in (VERDICTS, EXAMPLES):
        (output / name).unlink(missing_ok=True)
    if plan.save_verdicts:
        records.save(output / VERDICTS)
    if plan.save_verdicts and evaluation.fallen is not None:
        engine = evaluation.engine
        evaluation.to(device)
        examples = evaluation.fallen.answered(engine.target, engine.draws, device)
        examples.save(output / EXAMPLES, records.attacks)
    if plan.save_images:
        for name in records.attacks:
            rows = records.of(name)
            assert rows.images is not None  # the engine was told to keep them
            found = {"index": rows.index, "label": rows.label, "images": rows.images}
            save_tensors(found, output / f"{name}.safetensors")
