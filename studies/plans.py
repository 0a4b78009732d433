"""Models to train and points to measure: plans, each carried out once, in a folder of its own."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import cache, cached_property
from pathlib import Path
from typing import Any

import robusttrain
from robusttrain.commands.evaluate import evaluate
from robusttrain.commands.train import train
from robusttrain.evaluation.plan import EvaluationPlan
from robusttrain.evaluation.report import read_results
from robusttrain.running import training
from robusttrain.storage.files import hash_of_file, hash_of_json, write_json
from robusttrain.storage.weights import save_tensors
from robusttrain.training.plan import TrainingPlan

#: Of a plan, what changes no figure.
PLACES = {"output", "fresh", "name", "checkpoints", "logs", "ckpt_path", "estimate"}


@dataclass(frozen=True)
class Call:
    """A measurement that no plan describes.

    Args:
        function: what measures; its result becomes JSON.
        arguments: its keyword arguments, plain values.
        places: more of them, which change no figure; None for the measurement's own folder.
    """

    function: Callable[..., dict[str, Any]]
    arguments: Mapping[str, Any]
    places: Mapping[str, str | None] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """What the figures depend on."""
        return {"function": self.function.__name__, "arguments": dict(self.arguments)}


@dataclass(frozen=True)
class Job:
    """A plan, and where it is carried out: a model to train, or a point to measure.

    Its files can be named in other plans before they are there.

    Args:
        label: for people.
        work: what is to be done.
        parent: folder in which the job has its own; ``done.json`` is written there last.
    """

    label: str
    work: TrainingPlan | EvaluationPlan | Call
    parent: Path

    @cached_property
    def name(self) -> str:
        """Of its folder: the label, and a fingerprint of all that figures depend on."""
        plan = {key: value for key, value in self.work.to_json().items() if key not in PLACES}
        kind = type(self.work).__name__
        key = hash_of_json([robusttrain.__version__, kind, identified(plan)])[:12]
        return re.sub(r"[^\w.]+", "-", self.label) + "-" + key

    @property
    def folder(self) -> Path:
        """Its own."""
        return self.parent / self.name

    @property
    def checkpoint(self) -> str:
        """What the last epoch of a training leaves."""
        return str(self.folder / "last.ckpt")

    @property
    def weights(self) -> str:
        """What a training leaves of the network alone."""
        return str(self.folder / "weights.safetensors")

    @property
    def done(self) -> bool:
        """Whether it was carried out."""
        return (self.folder / "done.json").is_file()

    def account(self) -> dict[str, Any]:
        """Label, seconds and work; what a call returned is under "found"."""
        return dict(json.loads((self.folder / "done.json").read_text()))

    def result(self) -> Any:
        """`robusttrain.evaluation.report.Results` of an evaluation, what a call returned."""
        if isinstance(self.work, EvaluationPlan):
            return read_results(self.folder)
        return self.account()["found"]

    def carry_out(self, logs: Path) -> None:
        """Do it, from where an earlier attempt stopped."""
        start, returned = time.monotonic(), None
        if isinstance(self.work, Call):
            places = {name: place or self.folder for name, place in self.work.places.items()}
            returned = self.work.function(**self.work.arguments, **places)
        elif isinstance(self.work, EvaluationPlan):
            evaluate(replace(self.work, output=str(self.folder)))
        else:
            self._train(self.work, str(logs))
        seconds = round(time.monotonic() - start, 1)
        account = {"label": self.label, "seconds": seconds, "work": self.work.to_json()}
        write_json({**account, "found": returned}, self.folder / "done.json")

    def _train(self, plan: TrainingPlan, logs: str) -> None:
        if not plan.trainer["max_epochs"]:  # what a training would start from
            save_tensors(training.Job(plan).training().model.classifier, Path(self.weights))
            return
        if not Path(self.checkpoint).is_file():
            begun = any(self.folder.glob("version_*/last.ckpt"))
            plan = replace(plan, name=self.name, checkpoints=str(self.parent), logs=logs)
            trained = train(replace(plan, ckpt_path="last" if begun else None))
            assert trained is not None  # nothing asks for an estimate alone
            (trained.folder / "last.ckpt").replace(self.checkpoint)
        save_tensors(robusttrain.load(self.checkpoint).classifier, Path(self.weights))


def identified(value: Any, key: str = "") -> Any:
    """Plain values with fingerprints in place of the files that they name: these count by content,
    wherever they lie.
    """
    if isinstance(value, Mapping):
        return {name: identified(item, name) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [identified(item) for item in value]
    if not isinstance(value, str):
        return value
    path = Path(value)
    if key == "root":
        return str(path.resolve())
    if re.search(r"-[0-9a-f]{12}$", path.parent.name):  # of a job
        return f"{path.parent.name}/{path.name}"
    if path.suffix and path.is_file():
        return _content(path.resolve(), path.stat().st_mtime_ns)
    return value


@cache
def _content(path: Path, changed: int) -> str:
    return hash_of_file(path)
