"""The peers' curves of `benchmarks.strength`, in one file: when one of ours has changed, only ours
are measured anew.

A zip with a JSON for each model and norm: the version of each library, and by the name of its file
in ``--work`` what was measured of each contender, distances image by image.
"""

from __future__ import annotations

import io
import json
import zipfile
import zlib
from pathlib import Path, PurePosixPath
from typing import Any

from robusttrain.core.errors import UserError
from robusttrain.storage.files import write_whole

#: The oldest date that the format knows: the same curves make the same file at any time.
NO_TIME = (1980, 1, 1, 0, 0, 0)
#: What reading a damaged zip, or another one, raises.
DAMAGED = (OSError, zipfile.BadZipFile, RuntimeError, EOFError, zlib.error, ValueError, KeyError)
#: Libraries whose curves are kept.
PEERS = ("torchattacks", "foolbox", "adv-lib", "autoattack")


def library_of(name: str) -> str | None:
    """Which peer a file such as "l2-adv-lib-fmn-3.json" is of; None for ours."""
    rest = name.partition("-")[2]
    return next((each for each in PEERS if rest.startswith(f"{each}-")), None)


def pack(work: Path, versions: dict[str, str | None], path: Path) -> None:
    """Write the curves of all peers in a folder into a zip.

    Args:
        work: the folder, with another one for each model.
        versions: of the libraries, None where it is not known.
        path: of the zip.
    """
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as archive:
        for folder in sorted(each for each in work.iterdir() if each.is_dir()):
            for norm in ("linf", "l2"):
                files = [
                    each for each in sorted(folder.glob(f"{norm}-*.json")) if library_of(each.name)
                ]
                if files:
                    curves = {each.name: json.loads(each.read_text()) for each in files}
                    kept = {"versions": {name: versions.get(name) for name in PEERS}}
                    entry = zipfile.ZipInfo(f"{folder.name}/{norm}.json", NO_TIME)
                    data = json.dumps({**kept, "curves": curves}, separators=(",", ":"))
                    archive.writestr(entry, data, zipfile.ZIP_DEFLATED)
    write_whole(path, content.getvalue())


def unpack(path: Path, work: Path, versions: dict[str, str | None]) -> int:
    """Lay the curves that `pack` kept where the benchmark looks for them; what is there stays.

    Those of another version of a library are left out. Of which images and which weights they are
    the benchmark itself compares.

    Args:
        path: of the zip.
        work: the benchmark's folder.
        versions: of the libraries that are installed.

    Returns:
        How many curves it gave.

    Raises:
        UserError: the file cannot be read, or holds no curves.
    """
    given = 0
    try:
        with zipfile.ZipFile(path) as archive:
            for entry in archive.namelist():
                model = PurePosixPath(entry).parent.name
                if model in ("", ".."):
                    raise ValueError(f"{entry} is in no model's folder")
                kept: dict[str, Any] = json.loads(archive.read(entry))
                for name, curve in kept["curves"].items():
                    library = library_of(name)
                    if library is None or kept["versions"][library] != versions.get(library):
                        continue
                    file = work / model / PurePosixPath(name).name
                    if not file.is_file():
                        write_whole(file, json.dumps(curve).encode())
                        given += 1
    except DAMAGED as error:
        raise UserError(
            f"--earlier {path}: cannot be read ({error}): name the zip of --peers"
        ) from error
    return given
