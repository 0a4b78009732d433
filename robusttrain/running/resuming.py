"""Where a training goes: a new folder, or on from what an earlier run of the same settings left."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from itertools import zip_longest
from pathlib import Path
from typing import Any

from robusttrain.config.checkpoints import LATER, as_before, read_recipe
from robusttrain.config.trainer import PRECISIONS
from robusttrain.core.errors import UserError
from robusttrain.core.parts import flat
from robusttrain.core.telling import Say, first_process
from robusttrain.evaluation.plan import PLACES
from robusttrain.running.made_from import BESIDE, CODE, FILES, FURTHER, LABELS, ORIGIN, other_images
from robusttrain.running.precision_of_g import as_began
from robusttrain.storage import packaged
from robusttrain.storage.files import writable
from robusttrain.storage.locks import alone
from robusttrain.storage.reading import read_torch
from robusttrain.training.plan import Watching
from robusttrain.training.schedules import BY_EPOCHS

#: Options of the trainer that a schedule's length depends on besides ``max_epochs``.
LENGTH = ("max_steps", "limit_train_batches", "accumulate_grad_batches")

#: How much of validation the best epoch was chosen by.
VALIDATED = "trainer.limit_val_batches"

#: Key of a checkpoint's recipe: how many processes shared each step.
PROCESSES = "processes"

#: Key of a checkpoint's recipe: the names of its classes in the order of their numbers.
CLASSES = "classes"

#: What the lock of a run's folder is for.
TRAINING = "training"

#: What `robusttrain.config.watching.watchers` takes where nobody names an attack.
DEFAULTS = ["pgd-quick", "bpda-i-quick"]


@dataclass(frozen=True)
class Place:
    """Where a run keeps its weights.

    Args:
        version: name of its folder.
        folder: the folder.
        resume: the checkpoint that it goes on from, if any.
    """

    version: str
    folder: Path
    resume: Path | None

    @property
    def how_to_go_on(self) -> str:
        """What to tell whoever stops the run."""
        there = [self.folder / name for name in ("last.ckpt", "best.ckpt")]
        kept = next((path for path in there if path.is_file()), None)
        if kept is None:
            return "no epoch was finished, so nothing is kept; the same command starts again"
        if kept.name == "best.ckpt" and within_epoch(kept) is not None:
            # With validations inside an epoch (``val_check_interval``)
            return (
                f"no epoch was finished; {kept} is from within one: evaluate it, or give the same"
                " command, which starts again"
            )
        # The best epoch is written first: a disk may have had room for that alone.
        named = "last" if kept.name == "last.ckpt" else shlex.quote(str(kept))
        return f"the last finished epoch is kept as {kept}; --ckpt_path {named} goes on from there"


def placed(
    ckpt_path: str | None, runs: Path, recipe: dict[str, Any], plan: Mapping[str, Any]
) -> Place:
    """The place of a run; arguments as for `resumed`."""
    resume = resumed(ckpt_path, runs, recipe, plan)
    # A file that lies elsewhere starts a folder of its own, beside this run's others.
    at_home = resume is not None and resume.resolve().parent.parent == runs.resolve()
    version = resume.parent.name if resume and at_home else next_version(runs)
    return Place(version, runs / version, resume)


def next_version(folder: Path) -> str:
    """The name of a new run's folder: no run overwrites another one's checkpoints. `claimed` makes
    it.
    """
    taken = [
        int(path.name.removeprefix("version_"))
        for path in folder.glob("version_*")
        if path.name[8:].isdigit()
    ]
    return f"version_{max(taken, default=-1) + 1}"


def within_epoch(checkpoint: Path) -> tuple[int, int] | None:
    """The epoch, counted from 1, in which a checkpoint was kept, and how many of its batches were
    done; None for one from the end of an epoch.
    """
    content = read_torch(checkpoint)
    progress = content.get("loops", {}).get("fit_loop", {}).get("epoch_loop.batch_progress", {})
    if progress.get("is_last_batch", True):
        return None
    return int(content["epoch"]) + 1, int(progress["current"]["completed"])


def tell_within_epoch(resume: Path | None, say: Say) -> None:
    """Say so where a run goes on from within an epoch: Lightning takes the epoch's first batches
    again, as many as are left.
    """
    if resume is not None and (place := within_epoch(resume)) is not None:
        epoch, batches = place
        say(
            f"--ckpt_path {resume}: was kept within epoch {epoch}, after {batches} of its batches:"
            " the rest of that epoch begins with the same images again, so this run does not end as"
            " one that was left alone; a last.ckpt of a whole epoch does"
        )


@contextmanager
def sole(folder: Path, say: Say) -> Iterator[None]:
    """While the block runs, no other command trains in a run's folder: one that goes on there waits
    for this one, since each would overwrite what the other keeps.

    Of several processes of a run the first one waits for all.
    """
    if not first_process():
        yield
        return
    with alone(folder / TRAINING, f"the checkpoints in {folder}", say):
        try:
            yield
        finally:
            lock = folder / f".{TRAINING}.lock"
            with suppress(OSError):
                if [*folder.iterdir()] == [lock]:  # nothing was kept that anybody waits for
                    lock.unlink()


@contextmanager
def claimed(place: Place) -> Iterator[Place]:
    """The place with its folder made, so that no other run takes it: a new run whose number was
    taken since it looked gets the next one.

    Whatever is raised inside leaves no empty folder behind. Of several processes of a run only the
    first one makes it: Lightning tells the others where it saves.

    Raises:
        UserError: the folder cannot be made or written to.
    """
    if not first_process():
        yield place
        return
    made: list[Path] = []
    while not made and not _at_home(place):
        new = [each for each in (place.folder, *place.folder.parents) if not each.exists()]
        try:
            place.folder.mkdir(parents=True)
            made = new or [place.folder]
        except FileExistsError:  # another run has made it since
            if not place.folder.parent.is_dir():
                break  # `writable` says why
            version = next_version(place.folder.parent)
            place = replace(place, version=version, folder=place.folder.with_name(version))
        except OSError:
            break
    try:
        writable(place.folder, "--checkpoints")
        yield place
    except BaseException:
        with suppress(OSError):  # it is gone, or holds something
            if made:
                (place.folder / f".{TRAINING}.lock").unlink(missing_ok=True)
            for each in made:
                each.rmdir()
        raise


def _at_home(place: Place) -> bool:
    """Whether a run goes on in the folder of its checkpoint."""
    return place.resume is not None and place.resume.resolve().parent == place.folder.resolve()


def earlier(ckpt_path: str, folder: Path) -> Path:
    """The checkpoint that ``--ckpt_path`` means, of a run in ``folder``.

    Raises:
        UserError: there is none.
    """
    if ckpt_path != "last":
        path = Path(ckpt_path)
        if packaged.is_packaged(path):
            raise UserError(
                f"--ckpt_path {path}: a model of the package holds weights alone, and no training"
                " can go on from it: name a last.ckpt"
            )
        return path
    found = sorted(folder.glob("version_*/last.ckpt"), key=lambda path: int(path.parent.name[8:]))
    if not found:
        raise UserError(
            f"--ckpt_path last: no last.ckpt of this run under {folder}; leave the option out"
            " to start"
        )
    return found[-1]


def resumed(
    ckpt_path: str | None, folder: Path, recipe: dict[str, Any], plan: Mapping[str, Any]
) -> Path | None:
    """The checkpoint to go on from, None for a new run.

    Args:
        ckpt_path: as the option has it.
        folder: of the run's versions.
        recipe: of the run.
        plan: the run's plan, as JSON.

    Raises:
        UserError: there is none, or it belongs to a run that was configured differently; what
            differs is named.
    """
    if ckpt_path is None:
        return None
    path = earlier(ckpt_path, folder)
    old = read_recipe(path)
    if recipe["training"]["inner_precision"] == "auto":
        # What the run began with, whatever is faster by now.
        began = old.get("training", {}).get("inner_precision", "trainer")
        recipe["training"]["inner_precision"] = began
    as_began(recipe, old)
    began = old.get("run", {}).get("compile", "off")
    # Likewise; whoever asks for compiling means a run that was.
    if recipe["run"].get("compile") == "auto" or (
        recipe["run"].get("compile") == "on" and began != "off"
    ):
        recipe["run"]["compile"] = began
    old = _said_since(old, recipe["run"])
    before, now = (flat(as_before(_comparable(each))) for each in (old, recipe))
    if old.get("plan"):
        before |= _beside(old["plan"])
        now |= _beside(plan)
        if not (before["robust.every"] and now["robust.every"]):  # nothing to compare with
            before, now = (
                {key: to for key, to in each.items() if not key.startswith("robust.")}
                for each in (before, now)
            )
        before.pop("robust.every", None)
        now.pop("robust.every", None)
        if "0" in (before[VALIDATED], now[VALIDATED]):  # likewise
            before.pop(VALIDATED), now.pop(VALIDATED)
    # Its optimizer first: figures differ with it.
    for name in sorted({*before, *now}, key=lambda name: (name != "training.optimizer", name)):
        absent = LATER.get(name.rpartition(".")[2])
        had, has = (each.get(name, absent) for each in (before, now))
        if had != has:
            raise UserError(
                f"--ckpt_path {path}: that run had {name} = {had!r}, this one {has!r}; give the"
                " same options, or start a new run without --ckpt_path"
            )
    return path


def refuse_other_processes(resume: Path | None, processes: int) -> None:
    """Raise UserError if a run goes on with another number of processes than it began with: each
    step would have other images, and a schedule that ends with the run another length.

    Args:
        resume: the checkpoint that it goes on from, if any.
        processes: of this run.
    """
    if resume is None:
        return
    began = _processes(read_recipe(resume))
    if began is not None and began != processes:
        raise UserError(
            f"--ckpt_path {resume}: that run had {counted(began)}, this one {counted(processes)}:"
            " give the same --trainer.devices and --trainer.num_nodes, or start a new run without"
            " --ckpt_path"
        )


def refuse_other_images(
    resume: Path | None, classes: Sequence[str], origin: Mapping[str, str], say: Say
) -> None:
    """Raise UserError if a run goes on with other classes, or where training images came, went or
    changed places: numbers of classes would have another meaning, and images that were trained on
    would be held out for validation. Of another content a line is said, since decoders differ, too.

    Args:
        resume: the checkpoint that it goes on from, if any.
        classes: of this run, in the order of their numbers.
        origin: `robusttrain.running.made_from.digests` of its training images.
        say: takes the line.
    """
    if resume is None:
        return
    recipe = read_recipe(resume)
    before = recipe.get(CLASSES) or classes  # files of earlier versions may have none
    for number, (had, has) in enumerate(zip_longest(before, classes)):
        if had != has:
            raise UserError(
                f"--ckpt_path {resume}: that run had class {number} = {had!r}, this one {has!r};"
                " give the same classes, or start a new run without --ckpt_path"
            )
    if not (changed := other_images(recipe, origin)):
        return
    leak = "images that the run was trained on may be among those that are held out now"
    if changed == LABELS:
        raise UserError(
            f"--ckpt_path {resume}: the training images have changed since ({changed}), and {leak}:"
            " put them back, or start a new run without --ckpt_path"
        )
    say(f"--ckpt_path {resume}: the training images have changed since ({changed}): {leak}")


def refuse_other_besides(resume: Path | None, now: Mapping[str, Any], say: Say) -> None:
    """Raise UserError if a run goes on with other weights in the files that its objective names, or
    with other further images. Of other pixels in them, and of code of the user's own that was
    edited, a line is said.

    Args:
        resume: the checkpoint that it goes on from, if any.
        now: `robusttrain.running.made_from.besides` of this run.
        say: takes the line.
    """
    before = None if resume is None else read_recipe(resume).get(BESIDE)
    if not isinstance(before, Mapping):  # of an earlier version, which did not tell
        return
    fix = "put back what was there, or start a new run without --ckpt_path"
    for path, content in (before.get(FILES) or {}).items():
        if path in now[FILES] and now[FILES][path] != content:
            raise UserError(
                f"--ckpt_path {resume}: {path}, which --training.objective names, has another"
                f" content than when that run began: {fix}"
            )
    further = other_images({ORIGIN: before.get(FURTHER)}, now[FURTHER])
    if further == LABELS:
        raise UserError(
            f"--ckpt_path {resume}: the images of --extra.root have changed since ({further}):"
            f" {fix}"
        )
    if further:
        say(f"--ckpt_path {resume}: the images of --extra.root have changed since ({further})")
    if before.get(CODE, "") != now[CODE]:
        say(
            f"--ckpt_path {resume}: code of your own that this run names was edited since it began:"
            " its epochs are not all of the same code"
        )


def counted(processes: int) -> str:
    """1 process, 2 processes."""
    return f"{processes} process{'' if processes == 1 else 'es'}"


def _processes(recipe: Mapping[str, Any]) -> int | None:
    """How many processes a run had; of earlier versions only its options tell, as far as they name
    a number.
    """
    if isinstance(known := recipe.get(PROCESSES), int):
        return known
    trainer = (recipe.get("plan") or {}).get("trainer") or {}
    devices, nodes = str(trainer.get("devices")), trainer.get("num_nodes") or 1
    return int(devices) * int(nodes) if devices.isdigit() and int(devices) else None


def _beside(plan: Mapping[str, Any]) -> dict[str, Any]:
    """What a plan says of its steps besides the recipe, and of the figures by which an epoch is the
    best.
    """
    trainer = plan.get("trainer") or {}
    robust = asdict(Watching()) | (plan.get("robust") or {})
    limit = trainer.get("limit_val_batches")
    # What stands there by default depends on the defense, which is compared by itself.
    named = robust["attacks"] or []
    named = [named] if isinstance(named, str) else list(named)
    said = {
        "trainer.precision": PRECISIONS.get(precision := str(trainer.get("precision")), precision),
        "trainer.accumulate_grad_batches": trainer.get("accumulate_grad_batches") or 1,
        "trainer.gradient_clip_val": trainer.get("gradient_clip_val") or None,
        "trainer.sync_batchnorm": bool(trainer.get("sync_batchnorm")),
        # The best epoch is that of the same images. 1 is one batch, 1.0 all.
        VALIDATED: repr(1.0 if limit is None else limit),
        "f_b_training": plan.get("f_b_training") or "f_b",
        "robust.attacks": [] if len(named) == 1 and named[0] in DEFAULTS else named,
    }
    settings = plan.get("training") or {}
    if settings.get("schedule") in BY_EPOCHS or settings.get("warmup_epochs"):
        # Its epochs became steps when the run began.
        limit = trainer.get("limit_train_batches")
        said["trainer.limit_train_batches"] = repr(1.0 if limit is None else limit)
    if said["trainer.gradient_clip_val"] is not None:
        clipping = trainer.get("gradient_clip_algorithm") or "norm"
        said["trainer.gradient_clip_algorithm"] = clipping
    return said | {
        f"robust.{name}": robust[name] for name in ("every", "epsilon", "images", "draws")
    }


def _said_since(old: dict[str, Any], now: Mapping[str, Any]) -> dict[str, Any]:
    """An earlier recipe with what its ``run`` did not hold yet: from its plan, and where it has
    none, as ``now``.
    """
    plan, run = old.get("plan"), dict(old.get("run", {}))
    said = dict(now)
    if plan is not None:
        said = {key: plan["trainer"].get(key) for key in LENGTH}
        said |= {"monitor": plan.get("monitor"), "undo": plan.get("guard", {}).get("undo")}
    for key in (*(LENGTH if "max_epochs" in run else ()), "monitor", "undo"):
        if key not in run and said.get(key) not in (None, False):
            run[key] = said[key]
    return {**old, "run": run}


def _comparable(recipe: dict[str, Any]) -> dict[str, Any]:
    """What a resumed run must share: neither the places of data, nor what the plan says besides."""
    data = recipe["data"]
    recipe = {
        key: value
        for key, value in recipe.items()
        if key not in ("plan", CLASSES, ORIGIN, BESIDE, PROCESSES)
    }
    arguments = {
        key: value for key, value in (data.get("init_args") or {}).items() if key not in PLACES
    }
    return {**recipe, "data": {**data, "init_args": arguments}}
