"""Many plans: each carried out once, in a folder of its own, by any number of processes."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

from robusttrain.config.checkpoints import load
from robusttrain.core.errors import UserError
from robusttrain.core.stopping import saying_how_to_go_on
from robusttrain.core.telling import SILENT, Telling
from robusttrain.core.version import __version__
from robusttrain.data.imagefolder import SPLITS
from robusttrain.data.listing import subfolders
from robusttrain.evaluation.plan import EvaluationPlan
from robusttrain.evaluation.report import read_results
from robusttrain.running import training
from robusttrain.running.evaluating import evaluate
from robusttrain.running.made_from import own_code
from robusttrain.storage.files import hash_of_file, hash_of_json, parsed, write_json
from robusttrain.storage.locks import alone
from robusttrain.storage.weights import save_tensors
from robusttrain.training.plan import TrainingPlan

#: Of a plan, what changes no figure.
PLACES = {"output", "fresh", "name", "checkpoints", "logs", "ckpt_path", "estimate"}
#: Of a plan and its parts, what names a file, be it one without a suffix.
FILES = {"checkpoint", "weights"}
#: Bytes of a label in the name of a folder, which takes 255 with what stands around it.
LONGEST = 150


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
        """Of its folder: the label, and a fingerprint of all that figures depend on; the user's own
        code, too.
        """
        plan = {key: value for key, value in self.work.to_json().items() if key not in PLACES}
        about = [__version__, type(self.work).__name__, identified(plan)]
        if code := own_code(plan):  # else names would be others than before
            about.append(code)
        label = re.sub(r"[^\w.]+", "-", self.label).encode()
        return label[:LONGEST].decode(errors="ignore") + "-" + hash_of_json(about)[:12]

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
        """Label, seconds and work; what a call returned is under "found".

        Raises:
            UserError: its file is damaged.
        """
        path = self.folder / "done.json"
        try:
            return dict(parsed(path.read_text()))
        except (TypeError, ValueError) as error:
            raise UserError(f"{path}: is damaged: delete it, and this job is done again") from error

    def result(self) -> Any:
        """`robusttrain.evaluation.report.Results` of an evaluation, what a call returned."""
        evaluated = isinstance(self.work, EvaluationPlan)
        return read_results(self.folder) if evaluated else self.account()["found"]

    def carry_out(self, logs: Path, telling: Telling = SILENT) -> None:
        """Do it, from where an earlier attempt stopped.

        Args:
            logs: folder for the curves of trainings.
            telling: who listens.
        """
        start, returned = time.monotonic(), None
        if isinstance(self.work, Call):
            places = {name: place or self.folder for name, place in self.work.places.items()}
            returned = self.work.function(**self.work.arguments, **places)
        elif isinstance(self.work, EvaluationPlan):
            evaluate(replace(self.work, output=str(self.folder)), telling)
        elif self.work.trainer["max_epochs"]:
            self._train(replace(self.work, logs=str(logs)), telling)
        else:  # what a training would start from
            network = training.Job(self.work).training().model.classifier
            save_tensors(network, Path(self.weights))
        seconds = round(time.monotonic() - start, 1)
        account = {"label": self.label, "seconds": seconds, "work": self.work.to_json()}
        write_json({**account, "found": returned}, self.folder / "done.json")

    def _train(self, plan: TrainingPlan, telling: Telling) -> None:
        if not Path(self.checkpoint).is_file():
            begun = "last" if any(self.folder.glob("version_*/last.ckpt")) else None
            plan = replace(plan, name=self.name, checkpoints=str(self.parent), ckpt_path=begun)
            trained = training.train(plan, telling)
            assert trained is not None  # nothing asks for an estimate alone
            (trained.folder / "last.ckpt").replace(self.checkpoint)
        save_tensors(load(self.checkpoint).classifier, Path(self.weights))


def identified(value: Any) -> Any:
    """Plain values with fingerprints in place of the files that they name: a job's own name, or a
    hash of the content, wherever the files lie.
    """
    if isinstance(value, Mapping):
        roots = {name: value[name] for name in ("root", "data.root") if value.get(name)}
        # A table is known by its content, as any file.
        roots = {
            name: _folder(Path(root).resolve())
            for name, root in roots.items()
            if not Path(root).is_file()
        }
        files = {
            name: _file(each)
            for name in FILES
            if isinstance(each := value.get(name), str) and not Path(each).suffix
        }
        return {name: identified(item) for name, item in value.items()} | files | roots
    if isinstance(value, list | tuple):
        return [identified(item) for item in value]
    path = Path(value) if isinstance(value, str) else Path()
    if re.search(r"-[0-9a-f]{12}$", path.parent.name):  # of a job
        return f"{path.parent.name}/{path.name}"
    return _file(value) if path.suffix else value


def _file(name: str) -> str:
    """A file by its content, wherever it lies; text that names none as it is."""
    return hash_of_file(Path(name)) if Path(name).is_file() else name


def _folder(root: Path) -> str:
    """A folder of images by the names and sizes of its files, wherever it lies; any other by its
    path, since data sets that are downloaded come later, and one folder may hold several.
    """
    there = subfolders(root) if root.is_dir() else []
    splits = [root / name for name in there if name.lower() in SPLITS]
    folders = [root, *splits, *(each for split in splits for each in split.iterdir())]
    moments = [each.stat().st_mtime_ns for each in folders] if splits else []
    return _listed(tuple(splits), tuple(moments)) if splits else str(root)


@lru_cache  # tens of thousands of files, for each job of a study
def _listed(splits: tuple[Path, ...], moments: tuple[int, ...]) -> str:
    """Names and sizes below these folders; whoever adds a file changes the moment of its folder."""
    sizes = {
        f"{split.name}/{path.relative_to(split).as_posix()}": path.stat().st_size
        for split in splits
        for path in split.rglob("*")
        if path.is_file()
    }
    return hash_of_json(dict(sorted(sizes.items())))


def needed(jobs: Iterable[Job], models: Sequence[Job]) -> list[Job]:
    """The models whose files the jobs name.

    Args:
        jobs: that are to be carried out.
        models: trainings; what one rests on comes before it.
    """
    # Names hold the letters of any language, which escapes would hide.
    text = json.dumps([job.work.to_json() for job in jobs], ensure_ascii=False)
    named: list[Job] = []
    for model in reversed(models):
        if model.name in text:
            named.insert(0, model)
            text += json.dumps(model.work.to_json(), ensure_ascii=False)
    return named


def carry_out(
    jobs: Sequence[Job],
    models: Sequence[Job] = (),
    logs: Path = Path("logs"),
    telling: Telling = SILENT,
) -> None:
    """Carry out what is not done yet, and before it the models that it needs. Processes that do the
    same at the same time share the work; each returns when all is done.

    Args:
        jobs: to be done.
        models: trainings whose files the jobs may name; what one rests on comes before it.
        logs: folder for the curves of trainings.
        telling: who listens.
    """
    waiting = [job for job in jobs if not job.done]
    missing = [model for model in needed(waiting, models) if not model.done]
    telling.say(
        f"{len(jobs)} points, {len(waiting)} of them to be measured, {len(missing)} models to be"
        " trained first"
    )
    hint = "what was finished is kept; the same command goes on from there"
    written = [*{job.parent: None for job in (*missing, *waiting)}, logs]
    with saying_how_to_go_on(telling.say, lambda: hint, written):
        # First what no other process is at, then wait for models, then for all.
        for patience in range(3):
            for number, job in enumerate([*missing, *waiting], 1):
                if job.done or not all(model.done for model in needed([job], missing)):
                    continue
                wait = patience > (number > len(missing))
                with alone(job.folder, job.label, telling.say, wait) as held:
                    if held and not job.done:
                        count = len(missing) + len(waiting)
                        telling.say(f"{number} of {count}: {job.label}")
                        job.carry_out(logs, telling)
