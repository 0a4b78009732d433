"""The files of an evaluation: the content of results.json, the journal, images and verdicts."""

from __future__ import annotations

import platform
from collections.abc import Mapping, Sequence
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from robusttrain.core.processor import processor
from robusttrain.core.telling import Say
from robusttrain.core.typed import line
from robusttrain.core.version import __version__
from robusttrain.data import ImageData
from robusttrain.evaluation.beside import BARE, KNOWN_DRAW, TRANSFERRED
from robusttrain.evaluation.compiling import Choice
from robusttrain.evaluation.curve import file_name
from robusttrain.evaluation.engine import Engine
from robusttrain.evaluation.module import Evaluation
from robusttrain.evaluation.plan import PLACES, EvaluationPlan
from robusttrain.evaluation.precision import asked_for
from robusttrain.evaluation.report import SCHEMA, VERDICTS
from robusttrain.evaluation.scenario import Scenario
from robusttrain.models.defended import DefendedClassifier
from robusttrain.storage.files import hash_of_json, hash_of_weights
from robusttrain.storage.journal import Journal, unfinished, weights_of
from robusttrain.storage.locks import alone
from robusttrain.storage.made_of import code_in, modules_in
from robusttrain.storage.weights import save_tensors

#: The images that fell, beside results.json.
EXAMPLES = "examples.safetensors"
#: What is known of the certificate of each image, likewise.
CERTIFIED = "certificates.safetensors"
#: Whose verdicts lie there besides, where they were asked for.
BESIDES = (KNOWN_DRAW, BARE, TRANSFERRED, file_name("epsilon"), file_name("effort"))
#: Packages that a figure may depend on.
VERSIONS = ("torchvision", "pytorch-lightning", "timm")


def fingerprint(plan: EvaluationPlan, weights: str, random: bool) -> dict[str, Any]:
    """All that the figures depend on, except how attacks differentiate and sources that an attacker
    may have to train first.

    Args:
        plan: without attacks that do not apply.
        weights: of the target, as `weights_of` has them.
        random: whether the target is.
    """
    arguments = plan.data.get("init_args") or {}
    return {
        "target": {"model": plan.model, "defense": plan.defense, "weights": weights},
        "attacks": plan.attacks,
        "data": {
            "class_path": plan.data["class_path"],
            # Places and ways of loading may change: the journal compares the images of every batch.
            **{key: value for key, value in arguments.items() if key not in PLACES},
        },
        "images": plan.images,
        **({"split": plan.split} if plan.split != "test" else {}),
        "epsilon": plan.epsilon,
        "draws": plan.draws if random else 1,
        "survivors": plan.survivors,
        # Then an attack is given what those before it left.
        **({"order": [*plan.attacks]} if plan.survivors else {}),
        # Entries hold what an attack cost.
        **({} if plan.leave_early else {"leave_early": False}),
        "seed": plan.seed,
        "versions": {"robusttrain": __version__, "torch": torch.__version__},
    }


def in_its_own_folder(
    plan: EvaluationPlan, identity: Mapping[str, Any], attacks: Mapping[str, Scenario], say: Say
) -> EvaluationPlan:
    """The plan, its output beside the default folder where an unfinished run of other settings lies
    there: nothing of that run is lost, and its own command still finds it.

    The folder's name follows from the settings, so that the same command goes on there.

    Args:
        plan: whose output nobody chose, if it says so.
        identity: its `fingerprint`.
        attacks: by name.
        say: takes the line that says it.
    """
    if not plan.beside or plan.fresh:
        return plan
    if plan.precision != "auto":
        identity = {**identity, "precision": asked_for(plan.precision, attacks)}
    if plan.compile == "off":
        identity = {**identity, "compile": "off"}
    first = Path(plan.output)
    if not unfinished(first / "journal", identity):
        return plan
    # Rounding must not give one command two folders.
    identity = {**identity, "target": {**identity["target"], "answers": None}}
    other = first.with_name(f"{first.name}-{hash_of_json(identity)[:8]}")
    say(
        f"{first} holds an unfinished run of other settings, which its own command finishes; this"
        f" one goes into {other}"
    )
    return replace(plan, output=str(other), beside=False)


def explained(
    plan: EvaluationPlan,
    evaluation: Evaluation,
    target: DefendedClassifier,
    target_name: str,
    unfit: Mapping[str, str],
    precisions: Mapping[str, str],
    compilation: Choice,
    device: torch.device,
    data: ImageData,
    data_hash: str,
    training_seed: int | None,
    doubts: Sequence[str],
) -> dict[str, Any]:
    """The content of results.json: the figures, and all that the figures depend on.

    Args:
        plan: what was evaluated.
        evaluation: the evaluation, after its run.
        target: the model under attack.
        target_name: the target's name in the report.
        unfit: attacks of suites that do not apply, and why.
        precisions: of the attacks.
        compilation: how they took gradients.
        device: where the attacks ran.
        data: the images.
        data_hash: of their content.
        training_seed: of the target's training; None where nobody knows.
        doubts: lines that put the figures in question, known before any attack.
    """
    return {
        "schema": SCHEMA,
        "command": line(),
        "target": target_name,
        "weights": hash_of_weights(target),
        "training_seed": training_seed,
        "data": plan.data_name,
        "classes": data.class_names,
        "data_notes": data.notes,
        "data_hash": data_hash,
        "doubts": [*doubts],
        **read_and_coded(evaluation.engine.scenarios),
        **evaluation.results,
        "indices": evaluation.records.index.tolist(),
        "left_out": dict(unfit),
        "precision": {"asked": plan.precision, "attacks": dict(precisions)},
        "compile": {"asked": plan.compile, **compilation.to_json()},
        "processor": processor(device),
        "versions": versions(),
        "plan": plan.to_json(),
    }


def read_and_coded(attacks: Mapping[str, Scenario]) -> dict[str, Any]:
    """What options do not say of attacks, by their names: ``sources``, the weights of other models
    that their sources have read or trained, and ``code``, the user's own.
    """
    read = {name: modules_in(each.source) for name, each in attacks.items()}
    return {
        "sources": {
            name: hash_of_json([weights_of(each) for each in models])[:16]
            for name, models in read.items()
            if models
        },
        "code": codes_of(attacks),
    }


def codes_of(attacks: Mapping[str, Scenario]) -> dict[str, str]:
    """What tells the user's own code in attacks from what it was before an edit, by the attacks
    that hold any.
    """
    return {name: code for name, each in attacks.items() if (code := code_in(each))}


def versions() -> dict[str, str]:
    """Of what figures may depend on, for results.json."""
    return {
        "robusttrain": __version__,
        "torch": torch.__version__,
        **{name: version(name) for name in VERSIONS},
        "python": platform.python_version(),
    }


def open_journal(
    folder: Path, settings: dict[str, Any], engine: Engine, fresh: bool, say: Say
) -> Journal:
    """The journal of finished batches, with those of an interrupted run of the same settings.

    Args:
        folder: of the journal.
        settings: the `fingerprint`.
        engine: its sources complete the settings.
        fresh: whether to drop the entries of an unfinished run. Of several processes that Lightning
            starts only the first one may.
        say: takes lines.

    Raises:
        UserError: the folder holds an unfinished run of other settings; the error names them.
    """
    whole = {
        **settings,
        "sources": {name: weights_of(source) for name, source in engine.sources.items()},
    }
    with alone(folder, "the journal", say):
        journal = Journal(folder, whole, fresh, say)
    if journal.entries:
        say(f"going on in {folder}: {journal.entries} finished batches of attacks found")
    return journal


def save_requested(
    evaluation: Evaluation, plan: EvaluationPlan, device: torch.device, say: Say
) -> None:
    """Write verdicts and examples of images that fell unless the plan leaves them out, and all
    images if it asks for them. What an earlier run left of verdicts and examples goes; ``say``
    names its images, which stay.
    """
    records, output = evaluation.records, Path(plan.output)
    for name in (CERTIFIED, *(f"{name}-{VERDICTS}" for name in BESIDES)):
        (output / name).unlink(missing_ok=True)
    if plan.save_verdicts:
        if evaluation.certified is not None:
            evaluation.certified.save(output / CERTIFIED)
        records.save(output / VERDICTS)
        for name, second in evaluation.second.items():
            second.save(output / f"{name}-{VERDICTS}")
    else:
        (output / VERDICTS).unlink(missing_ok=True)
    if not plan.save_verdicts or evaluation.fallen is None:
        (output / EXAMPLES).unlink(missing_ok=True)
    else:
        engine = evaluation.engine
        evaluation.to(device)
        examples = evaluation.fallen.answered(engine.target, engine.draws, device)
        examples.save(output / EXAMPLES, records.attacks)
    if plan.save_images:
        for name in records.attacks:
            rows = records.of(name)
            assert rows.images is not None  # the engine was told to keep them
            columns = {"index": rows.index, "label": rows.label, "images": rows.images}
            judged = rows.judged(evaluation.engine.survivors)
            columns = {key: column[judged] for key, column in columns.items()}
            save_tensors(columns, output / f"{name}.safetensors")
    written = {EXAMPLES, VERDICTS, CERTIFIED, *(f"{name}-{VERDICTS}" for name in BESIDES)}
    written |= {f"{name}.safetensors" for name in records.attacks if plan.save_images}
    if old := sorted({path.name for path in output.glob("*.safetensors")} - written):
        say(f"{output}: not written by this run: {', '.join(old)}")
