"""The journal of a long run: every finished batch of every stage is on disk before the next one
starts.

A stage is one attack (or one attack on one source). An entry holds the tensors of one stage for one
batch of images, in a file of its own that is written whole or not at all. A run that was killed
finds its entries again and computes only the rest. Runs of the same command that share the folder
take batches from each other.

Every entry names its run, so that what another run left, or still writes, is never taken for this
one's: a folder is not emptied in one moment.
"""

from __future__ import annotations

import errno
import json
import re
import shutil
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from robusttrain.core.errors import UserError
from robusttrain.storage.claims import Claims
from robusttrain.storage.files import (
    hash_of_json,
    hash_of_tensors,
    hash_of_weights,
    parsed,
    write_json,
)
from robusttrain.storage.weights import read_metadata, read_tensors, save_tensors

Entry = dict[str, Tensor]
#: Name of the file that marks a finished run.
FINISHED = "finished"
#: Where a fingerprint says what the target answers.
ANSWERS = "target.answers"
_FULL = (errno.ENOSPC, errno.EDQUOT)


def digest(tensors: Mapping[str, Tensor]) -> str:
    """The first sixteen digits of `hash_of_tensors`."""
    return hash_of_tensors(tensors)[:16]


def weights_of(module: nn.Module) -> str:
    """The first sixteen digits of `hash_of_weights`."""
    return hash_of_weights(module)[:16]


def differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """The differences between two fingerprints, as "key: there ..., now ..."."""
    there, here = dict(_flat(before)), dict(_flat(_json(now)))
    missing = "nothing"
    return [
        f"{key}: there {there.get(key, missing)}, now {here.get(key, missing)}"
        for key in dict.fromkeys([*there, *here])
        if there.get(key, missing) != here.get(key, missing)
    ]


def _flat(node: Any, key: str = "") -> Iterator[tuple[str, Any]]:
    """Leaves of nested dicts and lists by their dotted names."""
    if isinstance(node, Mapping | list) and node:
        for name, value in node.items() if isinstance(node, Mapping) else enumerate(node):
            yield from _flat(value, f"{key}.{name}" if key else str(name))
    else:
        yield key, node


def read_fingerprint(folder: Path) -> dict[str, Any] | None:
    """The fingerprint of the run in a folder; None if there is no run, {} if the file is
    unreadable.
    """
    try:
        fingerprint = parsed((folder / "fingerprint.json").read_text())
    except FileNotFoundError:
        return None
    except ValueError:
        return {}
    return fingerprint if isinstance(fingerprint, dict) else {}


def stopped(folder: Path) -> bool:
    """Whether a run lies in a journal's folder that has not come to its end."""
    return (folder / "fingerprint.json").is_file() and not (folder / FINISHED).is_file()


def unfinished(folder: Path, now: Mapping[str, Any], whole: bool = False) -> list[str]:
    """What differs from an unfinished run that lies in ``folder``; nothing where none does.

    Args:
        folder: of a journal.
        now: a fingerprint, or the part of it that is known at once.
        whole: whether ``now`` is all of it.
    """
    before = read_fingerprint(folder)
    if before is None or not stopped(folder):
        return []
    return differences({key: value for key, value in before.items() if whole or key in now}, now)


def refuse_others(folder: Path, now: Mapping[str, Any], whole: bool = False) -> None:
    """Raise UserError if an unfinished run of another fingerprint lies in ``folder``.

    Args:
        folder: of a journal.
        now: a fingerprint, or the part of it that is available early, so that a refusal comes
            before hours are spent.
        whole: whether ``now`` is the whole fingerprint.
    """
    if lines := unfinished(folder, now, whole):
        raise UserError(
            f"--output {folder.parent}: an unfinished run lies there that differs in"
            f" {some(lines)}: finish it with its own command, name another --output,"
            " or drop it with --fresh true"
        )


def some(lines: Sequence[str]) -> str:
    """The first three `differences`, and how many more there are; what the target answers, which
    differs with its weights, only where nothing else does.
    """
    lines = [each for each in lines if not each.startswith(ANSWERS)] or lines
    more = f", and {len(lines) - 3} more" if len(lines) > 3 else ""
    return "; ".join(lines[:3]) + more


def _json(fingerprint: Mapping[str, Any]) -> dict[str, Any]:
    """The fingerprint as it comes back from a file."""
    plain: dict[str, Any] = json.loads(json.dumps(fingerprint))
    return plain


class OtherImagesError(UserError):
    """An entry was made from other images or labels with the same indices."""


class Journal:
    """Entries of one run, by stage and batch.

    Args:
        folder: of this run alone; made as needed.
        fingerprint: all that the entries depend on, as plain JSON. A finished run of another
            fingerprint is replaced; an unfinished one is not.
        fresh: whether to drop what an unfinished run left.
        report: called with a line about a damaged entry that was dropped, or a finished run of
            another fingerprint whose place this one takes, ``fresh`` or not.

    Raises:
        UserError: the folder holds an unfinished run of another fingerprint.
    """

    def __init__(
        self,
        folder: Path,
        fingerprint: Mapping[str, Any],
        fresh: bool = False,
        report: Callable[[str], None] = lambda line: None,
    ) -> None:
        self.folder, self.report = folder, report
        self.claims = Claims(folder / "claims")
        now, before = _json(fingerprint), read_fingerprint(folder)
        self.run = hash_of_json(now)[:16]
        if before is not None and (fresh or before != now):
            if not fresh:
                refuse_others(folder, now, whole=True)
            if before != now and not stopped(folder):
                report(
                    f"{folder.parent}: takes the place of a finished run that differs in"
                    f" {some(differences(before, now))}; another --output keeps both"
                )
            _remove(folder)
        elif before is None and _left(folder):
            _remove(folder)  # half of it was removed already, and then a kill
        folder.mkdir(parents=True, exist_ok=True)
        if not (folder / "fingerprint.json").is_file():
            write_json(now, folder / "fingerprint.json")

    @property
    def entries(self) -> int:
        """How many entries there are."""
        return sum(1 for _ in self.folder.glob("*/*.safetensors"))

    @property
    def finished(self) -> bool:
        """Whether the run came to its end."""
        return (self.folder / FINISHED).is_file()

    def finish(self) -> None:
        """Mark the run as finished, so that another run may take its place.

        Raises:
            UserError: another run has taken the folder.
        """
        self._check_ours()
        (self.folder / FINISHED).touch()

    def get(self, stage: str, images: Tensor, labels: Tensor, indices: Tensor) -> Entry | None:
        """The entry of a stage for a batch; None if there is none.

        A damaged entry is dropped and reported.

        Args:
            stage: name of the attack.
            images: (B, C, H, W), the clean images.
            labels: (B,) int64.
            indices: (B,) int64, the images' places in the data set.

        Raises:
            OtherImagesError: the entry was made from other images or labels with the same indices.
        """
        path = self._path(stage, indices)
        if not path.exists():
            return None
        try:
            entry, metadata = read_tensors(path), read_metadata(path)
        except UserError as error:
            self._drop(path, str(error))
            return None
        if metadata.get("content") != digest(entry):
            self._drop(path, f"{path} does not hold what was written")
            return None
        if metadata.get("run") != self.run:
            self._drop(path, f"{path} is of another run")
            return None
        if metadata.get("batch") != _batch(images, labels, indices):
            raise OtherImagesError(
                f"{path} was made from other images: the data set has changed since that run began"
            )
        return entry

    def has(self, stage: str, indices: Tensor) -> bool:
        """Whether there is an entry, without a look at what it holds."""
        return self._path(stage, indices).exists()

    def put(
        self, stage: str, images: Tensor, labels: Tensor, indices: Tensor, entry: Entry
    ) -> None:
        """Write an entry, arguments as for ``get``.

        Raises:
            UserError: the disk is full, and all entries so far are kept; or another run has taken
                the folder.
        """
        batch = _batch(images, labels, indices)
        metadata = {"content": digest(entry), "batch": batch, "run": self.run}
        self._check_ours()
        with self._disk():
            save_tensors(entry, self._path(stage, indices), metadata)

    def _check_ours(self) -> None:
        there = read_fingerprint(self.folder)
        if there is None:
            raise UserError(
                f"--output {self.folder.parent}: its journal was deleted meanwhile, so what was"
                " finished is gone: run the command again"
            )
        if hash_of_json(there)[:16] != self.run:
            raise UserError(
                f"--output {self.folder.parent}: another run has taken this folder meanwhile (by"
                " --fresh true, or with other settings): name another --output"
            )

    @contextmanager
    def taken(self, indices: Tensor) -> Iterator[bool]:
        """Claim a batch for this process while the block runs; see `Claims.taken`.

        Raises:
            UserError: the disk is full; all entries so far are kept.
        """
        with ExitStack() as stack:
            with self._disk():
                mine = stack.enter_context(self.claims.taken(_name(indices)))
            yield mine

    @contextmanager
    def _disk(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            if error.errno in _FULL:
                raise UserError(
                    f"{self.folder}: the disk is full; what was finished is kept: make room and"
                    " give the same command again (without --fresh true)"
                ) from error
            raise

    def _path(self, stage: str, indices: Tensor) -> Path:
        folder = re.sub(r"[^\w.=-]+", "-", stage)
        if folder != stage:  # or two stages could share one
            folder += f"-{hash_of_json(stage)[:8]}"
        return self.folder / folder / f"{_name(indices)}.safetensors"

    def _drop(self, path: Path, why: str) -> None:
        self.report(f"{why}: dropped, to be done again")
        path.unlink(missing_ok=True)


def _left(folder: Path) -> list[str]:
    """What lies in a folder, but for hidden files, which are being written, and claims."""
    there = [path.name for path in folder.iterdir()] if folder.is_dir() else []
    return [name for name in there if not name.startswith(".") and name != "claims"]


def _remove(folder: Path) -> None:
    """Out of sight first, at one stroke: whoever is killed here leaves no half of a run."""
    aside = folder.with_name(f".{folder.name}-{uuid.uuid4().hex[:8]}-old")
    folder.rename(aside)
    for old in folder.parent.glob(f".{folder.name}-*-old"):
        shutil.rmtree(old, ignore_errors=True)


def _name(indices: Tensor) -> str:
    first = int(indices[0]) if len(indices) else 0
    return f"{first:08d}-{len(indices)}-{digest({'indices': indices})}"


def _batch(images: Tensor, labels: Tensor, indices: Tensor) -> str:
    return digest({"images": images, "labels": labels, "indices": indices})
