"""What a study measured, in one file: a study of many hours goes on elsewhere, a few seeds at a
time.
"""

from __future__ import annotations

import io
import re
import zipfile
import zlib
from collections.abc import Iterable
from pathlib import Path

from robusttrain.core.errors import UserError
from robusttrain.running.jobs import Job
from robusttrain.storage.files import write_whole

#: What says that the rest of a point is whole; written last.
LAST = "done.json"
#: The oldest date that the format knows: the same points make the same file at any time.
NO_TIME = (1980, 1, 1, 0, 0, 0)

#: An absolute path, and the two parts that stay of it.
PLACE = re.compile(rb'(?<=["\s=])(?:/[^\s"\\/:]+)*/([^\s"\\/:]+/[^\s"\\/:]+)(?=["\s])')
#: What reading a damaged zip raises; the third also for one that is encrypted.
DAMAGED = (OSError, zipfile.BadZipFile, RuntimeError, EOFError, zlib.error)


def figures(name: str) -> bool:
    """Whether a file of a point's folder holds its figures, and is neither picture nor weights."""
    return name.endswith((".json", "verdicts.safetensors")) and Path(name).name == name


def without_places(content: bytes) -> bytes:
    """A JSON text in which no path says where it lay on this machine: the last two parts stay, a
    job's folder and its file, by which plans know them.
    """
    return PLACE.sub(rb"\1", content)


def pack(jobs: Iterable[Job], path: Path) -> None:
    """Write the measured ones among the points into a zip, a folder each, pictures left out."""
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as archive:
        for job in jobs:
            for file in sorted(job.folder.iterdir()) if job.done else []:
                if figures(file.name):
                    entry = zipfile.ZipInfo(f"{job.name}/{file.name}", NO_TIME)
                    data = file.read_bytes()
                    data = without_places(data) if file.suffix == ".json" else data
                    archive.writestr(entry, data, zipfile.ZIP_DEFLATED)
    write_whole(path, content.getvalue())


def unpack(path: Path, jobs: Iterable[Job], option: str) -> int:
    """Lay the points that `pack` kept where the study looks for them.

    A point is known by its job's name, thus by a fingerprint of all that its figures depend on.
    Nothing else of the file is read, and what was measured here already stays.

    Args:
        path: of the zip.
        jobs: the study's points.
        option: that named the file.

    Returns:
        How many points it gave.

    Raises:
        UserError: the file cannot be read, or is no zip.
    """
    given = 0
    try:
        with zipfile.ZipFile(path) as archive:
            for job in jobs:
                here = f"{job.name}/"
                inside = [each for each in archive.namelist() if each.startswith(here)]
                names = [name for each in inside if figures(name := each.removeprefix(here))]
                if job.done or LAST not in names:
                    continue
                for name in sorted(names, key=lambda name: name == LAST):
                    write_whole(job.folder / name, archive.read(here + name))
                given += 1
    except DAMAGED as error:
        raise UserError(
            f"{option} {path}: cannot be read ({error}): name the points.zip of a study"
        ) from error
    return given
