"""What a study consists of: models to train and points to measure, each a command line with a
fingerprint.

A `Training` is a command line of train.py, a `Point` one of evaluate.py (or a measurement on g with
train.py's options). Their fingerprints are hashes of these command lines, of the presets that they
name and of the files that they read: equal settings are found again, whatever study asks for them.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Union

from robusttrain import __version__
from robusttrain.config import presets
from robusttrain.storage.files import hash_of_file, hash_of_json

#: A command line, with trainings in place of the files that they will have left.
Argument = Union[str, Path, "Text", "Training"]
Arguments = tuple[Argument, ...]


@dataclass(frozen=True)
class Text:
    """An argument that names several models: their checkpoints stand for each ``%s`` of the
    pattern.
    """

    pattern: str
    models: tuple[Training, ...]


@dataclass(frozen=True)
class Training:
    """A model, as the command line of train.py that makes it.

    Args:
        label: short name, for folders and messages; not part of the fingerprint.
        arguments: of train.py, without places. A `Training` among them stands for what it leaves:
            for its network's weights after an option that ends in ``weights``, for its checkpoint
            elsewhere. The training preset ``reparameterization`` leaves h alone.
        epochs: of training; 0 for a network with its initial weights.
        passes: gradient evaluations of the model for each image and epoch (11 for adversarial
            training with 10 steps).
        steps: steps N of the g that it is trained behind, 0 for none.
        images: of an epoch; this and the last two serve the estimate of the cost alone.
    """

    label: str
    arguments: Arguments
    epochs: int
    images: int
    passes: int = 1
    steps: int = 0

    @property
    def key(self) -> str:
        """Equal for equal settings."""
        return fingerprint((*self.arguments, "--trainer.max_epochs", str(self.epochs)))

    @property
    def is_h(self) -> bool:
        """Whether it is h of the reparameterization attack, which stands in for the g of a
        checkpoint.
        """
        return "reparameterization" in self.arguments

    @property
    def name(self) -> str:
        """Of the run, and of its folder."""
        return re.sub(r"[^\w.]+", "-", self.label) + "-" + self.key


@dataclass(frozen=True)
class Point:
    """One measurement of a study.

    Args:
        label: unique within the study.
        arguments: of evaluate.py, or of ``measure``; a `Training` among them as in `Training`.
        measure: what to call with the arguments, None for evaluate.py.
        transforms: evaluations of g that ``measure`` makes, for the estimate of the cost.
    """

    label: str
    arguments: Arguments
    measure: Callable[[list[str]], dict[str, Any]] | None = None
    transforms: int = 0

    @property
    def key(self) -> str:
        """Equal for equal settings."""
        how = (
            f"{self.measure.__module__}.{self.measure.__name__}" if self.measure else "evaluate.py"
        )
        return fingerprint((how, *self.arguments))

    @property
    def attacks(self) -> list[str]:
        """Presets of the attacks."""
        pairs = zip(self.arguments, self.arguments[1:], strict=False)
        return [str(value) for option, value in pairs if option == "--attack"]

    @property
    def missing(self) -> list[str]:
        """Attack presets that do not exist (yet)."""
        return [
            name
            for name in self.attacks
            if not name.endswith(".yaml") and name not in presets.names("attack")
        ]


def trainings(arguments: Arguments) -> Iterator[Training]:
    """Every model that the arguments rest on, those first that others need."""
    for argument in arguments:
        if isinstance(argument, Text):
            yield from trainings(argument.models)
        if isinstance(argument, Training):
            yield from trainings(argument.arguments)
            yield argument


def fingerprint(arguments: Arguments) -> str:
    """Twelve hexadecimal digits that differ where the settings do."""
    identities: list[Any] = [__version__, *map(_identity, arguments)]
    for option, value in zip(arguments, arguments[1:], strict=False):
        kind = str(option).removeprefix("--")
        # A preset that was changed is another setting.
        if kind in presets.KINDS and (path := presets.names(kind).get(str(value))):
            # Any of its kind: it may be like another one.
            changed = max(file.stat().st_mtime_ns for file in presets.names(kind).values())
            identities.append(_preset(path.resolve(), changed))
    return hash_of_json(identities)[:12]


def _identity(argument: Argument) -> str:
    if isinstance(argument, Training):
        return argument.key
    if isinstance(argument, Text):
        return argument.pattern + " ".join(model.key for model in argument.models)
    if isinstance(argument, Path):
        found = argument.resolve()
        return _content(found, found.stat().st_mtime_ns) if found.is_file() else str(found)
    return argument


@cache
def _preset(path: Path, changed: int) -> dict[str, Any]:
    return presets.read_yaml(path, str(path))


@cache
def _content(path: Path, changed: int) -> str:
    """A file counts by its content, wherever it lies; ``changed`` tells the caches about another
    version of it.
    """
    return hash_of_file(path)
