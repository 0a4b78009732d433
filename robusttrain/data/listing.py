"""Lists the images of a folder. A file is passed over in silence only if nobody means it as an
image.
"""

from __future__ import annotations

import os
from collections import Counter
from pathlib import Path

from robusttrain.core.errors import UserError
from robusttrain.data.decoding import suffixes
from robusttrain.data.notes import note, shown

#: Endings of files that people keep beside images.
_NO_IMAGES = (
    *(".csv", ".html", ".ini", ".json", ".log", ".md", ".py", ".rst", ".sha256", ".tsv", ".txt"),
    *(".xml", ".yaml", ".yml"),
)
_LEFT_BY_SYSTEMS = {"thumbs.db", "ehthumbs.db", "icon\r", "__macosx", "@eadir", "lost+found"}


def hidden(name: str) -> bool:
    """Whether a file or folder is hidden (``._a.jpg``), or was left by a system."""
    return name.startswith(".") or name.lower() in _LEFT_BY_SYSTEMS


def entries(folder: Path) -> list[os.DirEntry[str]]:
    """The entries of a folder, sorted by name, without `hidden` ones.

    Raises:
        UserError: the folder cannot be listed.
    """
    try:
        with os.scandir(folder) as there:
            return sorted((each for each in there if not hidden(each.name)), key=lambda e: e.name)
    except OSError as error:
        raise UserError(f"cannot list the folder {shown(folder)} ({error.strerror})") from error


def subfolders(folder: Path) -> list[str]:
    """Sorted names of the folders in ``folder``, without hidden ones."""
    return [entry.name for entry in entries(folder) if entry.is_dir()]


def _ending(name: str) -> str:
    return os.path.splitext(name)[1].lower()


class Listing:
    """Lists images folder by folder, and remembers other files.

    Args:
        notes: gets the lines of `tell`.
    """

    def __init__(self, notes: list[str]) -> None:
        self.notes = notes
        self._others: list[str] = []
        self._broken: list[str] = []
        self._nested: list[str] = []

    def images_in(self, folder: Path) -> list[str]:
        """Sorted paths of the images in ``folder`` and in the folders inside it; none if there is
        no such folder.
        """
        if not folder.is_dir():
            return []
        images: list[str] = []
        endings = suffixes()
        # Folders are compared by real paths, not by names: a link may lead back up.
        own = os.path.realpath(folder)
        inside, seen = [folder], {own}
        while inside:
            here = inside.pop()
            for entry in entries(here):
                if entry.is_dir():
                    real = os.path.realpath(entry.path)
                    if real in seen or own.startswith(real.rstrip(os.sep) + os.sep):
                        self._broken.append(entry.path)
                    else:
                        seen.add(real)
                        inside.append(Path(entry.path))
                    continue
                suffix = _ending(entry.name)
                if suffix in _NO_IMAGES:
                    continue
                if not entry.is_file():  # a link to nothing, a pipe, a device
                    self._broken.append(entry.path)
                elif suffix not in endings:
                    self._others.append(entry.path)
                else:
                    images.append(entry.path)
                    if here != folder:
                        self._nested.append(entry.path)
        return sorted(images)

    def loose(self, folder: Path) -> list[str]:
        """Sorted paths of the images directly in ``folder``."""
        endings = suffixes()
        files = [each for each in entries(folder) if _ending(each.name) in endings]
        return [each.path for each in files if each.is_file()]

    def tell(self) -> None:
        """Add a line for each kind of unexpected entry."""
        if self._others:
            kinds = Counter(_ending(path) or "no ending" for path in self._others)
            counts = ", ".join(f"{shown(kind)}: {count}" for kind, count in kinds.most_common(5))
            self._note(
                "passed over as no images that can be read here", self._others, f" ({counts})"
            )
        if self._broken:
            self._note(
                "passed over as links that lead nowhere or back, or as no plain files", self._broken
            )
        if self._nested:
            self._note(
                "images in folders inside class folders, which count as the class of the outer one",
                self._nested,
            )

    def _note(self, what: str, paths: list[str], more: str = "") -> None:
        note(self.notes, f"{what}: {len(paths):,}{more}; the first: {shown(min(paths))}")
