"""Trained models that come with the package: ``packaged/NAME.safetensors``, and a card beside each.

A card, ``NAME.yaml``, says how its model is built and was trained, by which commands, and what an
evaluation of this very file measured; ``studies/packaged_models.py`` writes both files. A name
stands wherever a checkpoint or a file of weights stands; a file of that name comes first. Nothing
here needs torch: lists and refusals are there at once.
"""

from __future__ import annotations

import difflib
import hashlib
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from robusttrain.core.errors import FileError

#: Where they lie.
FOLDER = Path(__file__).parents[1] / "packaged"
#: What is attacked where nothing was trained yet.
DEFAULT = "digits-g"
_NAME = re.compile(r"[a-z][\w-]*")


@dataclass(frozen=True)
class Card:
    """What is to be said of a packaged model.

    Args:
        name: of the model.
        path: of the card.
        content: of the card.
    """

    name: str
    path: Path
    content: Mapping[str, Any]

    @property
    def recipe(self) -> dict[str, Any]:
        """What a checkpoint of the same model would hold to rebuild it."""
        recipe: dict[str, Any] = self.content["recipe"]
        return recipe

    @property
    def label(self) -> str:
        """The model in reports: name, and the beginning of the hash of its file."""
        return f"{self.name} (packaged, sha256 {self.content['sha256'][:12]})"

    def weights(self) -> Path:
        """The file of its weights, as the card describes it.

        Raises:
            FileError: it has other content than that which the card speaks of.
        """
        path = self.path.with_suffix(".safetensors")
        content = path.read_bytes() if path.is_file() else b""
        if hashlib.sha256(content).hexdigest() != self.content["sha256"]:
            raise FileError(path, "is not the file that its card describes: install anew")
        return path


def names() -> dict[str, Path]:
    """The cards of all packaged models, by name."""
    return {path.stem: path for path in sorted(FOLDER.glob("*.yaml"))}


def is_packaged(value: str | os.PathLike[str]) -> bool:
    """Whether a value names a packaged model, and no file."""
    name = os.fspath(value)
    if not _NAME.fullmatch(name) or Path(name).is_file():
        return False
    return (FOLDER / f"{name}.yaml").is_file()


def card(name: str | os.PathLike[str]) -> Card:
    """The card of a model that `is_packaged`."""
    path = FOLDER / f"{os.fspath(name)}.yaml"
    return Card(path.stem, path, yaml.safe_load(path.read_text()))


def nearest(name: str) -> str | None:
    """The packaged model whose name is most like this one, if any is."""
    near = difflib.get_close_matches(name, names(), n=1, cutoff=0.7)
    return near[0] if near else None


def hint(value: str | os.PathLike[str]) -> str:
    """What to add to "there is no such file", for a value that may have been meant as a name."""
    name = os.fspath(value)
    if not _NAME.fullmatch(name):
        return ""
    if near := nearest(name):
        return f"; did you mean {near}, a model that comes with the package?"
    return f", and no such model in the package, which has {', '.join(names())}"
