"""The tensors of a file of weights by their paths, and what the paths say."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

import torch
from torch import Tensor

from robusttrain.core.errors import FileError, show

#: Words in a path of weights that are a mean over training.
AVERAGED = {"ema", "swa", "average", "averaged", "avg", "shadow", "polyak"}
#: Words that leave it open: a teacher may be an average of the student, or a network of its own.
UNCLEAR = {"teacher", "student"}
#: Counters beside weights that no network reads.
COUNTERS = {"num_batches_tracked", "n_averaged", "steps", "total_ops", "total_params"}
#: Shared or circular dicts of a hostile file have paths without end.
DEPTH, MOST = 20, 100_000


@dataclass(frozen=True)
class Leaves:
    """The tensors of a file.

    Args:
        tensors: by their paths, with dots.
        entry: for each tensor the path of the dict that holds it, with a dot at the end; empty for
            the file itself.
        numbers: short lists of numbers, by their paths.
        nameless: lists of tensors: their paths, and how many tensors each has.
    """

    tensors: dict[str, Tensor] = field(default_factory=dict)
    entry: dict[str, str] = field(default_factory=dict)
    numbers: dict[str, Tensor] = field(default_factory=dict)
    nameless: dict[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class Way:
    """One place in a file whose tensors are those of the network.

    Args:
        prefixes: the text before the names in the file, with a dot at its end; two prefixes if the
            weights lie in two parts.
        child: the text before the same names in the network.
        names: of the tensors in the file, by their names in the network.
        extra: names beside them that the network does not have.
    """

    prefixes: tuple[str, ...]
    child: str
    names: dict[str, str]
    extra: tuple[str, ...] = ()

    @property
    def label(self) -> str:
        """The place's name in the option ``which``."""
        return " and ".join(prefix.rstrip(".") or "the file itself" for prefix in self.prefixes)


def leaves_of(content: object, path: object) -> Leaves:
    """All tensors of a file, by their paths.

    Args:
        content: of the file.
        path: of the file, for the error.

    Raises:
        FileError: the tree is larger or deeper than that of any file of weights.
    """
    leaves = Leaves()
    left: list[tuple[object, str, int]] = [(content, "", 0)]
    for _ in range(MOST):
        if not left:
            return leaves
        node, prefix, depth = left.pop()
        if depth > DEPTH:
            break
        below = _put(node, prefix, leaves)
        # The last one is looked at first; reversed, that gives the file's order
        left += [(inner, name, depth + 1) for inner, name in reversed(below)]
    raise FileError(path, "is a tree larger or deeper than weights are: save a plain state_dict")


def _put(node: object, prefix: str, leaves: Leaves) -> list[tuple[object, str]]:
    """Put a node's tensors among the leaves; returns the nodes below it, with their prefixes."""
    items: Iterable[tuple[object, object]] = ()
    if isinstance(node, dict):
        items = node.items()
    elif isinstance(node, list | tuple):
        tensors = sum(isinstance(item, Tensor) for item in node)
        if tensors:
            leaves.nameless[prefix.rstrip(".")] = tensors
        elif 0 < len(node) <= 16 and all(type(item) in (int, float) for item in node):
            leaves.numbers[prefix.rstrip(".")] = torch.tensor(node, dtype=torch.float32)
        else:
            items = enumerate(node)
    below: list[tuple[object, str]] = []
    for key, value in items:
        name = f"{prefix}{key}"
        if isinstance(value, Tensor):
            leaves.tensors[name] = value.detach()
            leaves.entry[name] = prefix
        elif isinstance(value, dict | list | tuple):
            below.append((value, f"{name}."))
    return below


def is_averaged(way: Way, leaves: Leaves) -> bool:
    """Whether a place's path says that its weights are a mean over training."""
    prefix = way.prefixes[0]
    if AVERAGED & words(prefix):
        return not (prefix.startswith("ema_state_dict.") and _swapped(leaves))
    if prefix.endswith("module.") and f"{prefix.removesuffix('module.')}n_averaged" in (
        leaves.tensors
    ):
        return True  # torch.optim.swa_utils.AveragedModel
    # Lightning's WeightAveraging saves the mean as state_dict
    return prefix.startswith("state_dict.") and (
        _swapped(leaves) or any(name.startswith("current_model_state.") for name in leaves.tensors)
    )


def _swapped(leaves: Leaves) -> bool:
    """Whether MMEngine's EMAHook wrote a file: when it saves, it exchanges ``state_dict`` and
    ``ema_state_dict``, whose counter is ``steps``.
    """
    return "ema_state_dict.steps" in leaves.tensors


def is_unclear(way: Way) -> bool:
    """Whether only the user can know how a place's weights relate to the others."""
    return bool(UNCLEAR & words(way.prefixes[0]))


def called(way: Way, name: str) -> bool:
    """Whether ``name`` is the path of a place, or a part of it."""
    prefix = way.prefixes[0].rstrip(".")
    return name in (way.label, prefix, *prefix.split(".")) or prefix.startswith(f"{name}.")


def beside(used: set[str], leaves: Leaves) -> list[str]:
    """What a file holds besides the ``used`` names, each by the shortest part of its path that no
    used name shares.
    """
    mine = {name[: len(name) - len(rest)] for name, rest in cuts(used)}
    paths: dict[str, None] = {}
    for name in leaves.tensors:
        if name not in used and name.rpartition(".")[2] not in COUNTERS:
            parts = name.split(".")
            cut = next(
                (n for n in range(1, len(parts)) if ".".join(parts[:n]) + "." not in mine),
                len(parts),
            )
            paths[show(".".join(parts[:cut]))] = None
    return [*paths]


def cuts(names: Iterable[str]) -> Iterator[tuple[str, str]]:
    """For each dot in each name: the name, and the part behind the dot."""
    for name in names:
        start = name.find(".")
        while start >= 0:
            yield name, name[start + 1 :]
            start = name.find(".", start + 1)


def above(prefix: str) -> str:
    """The path one level above a prefix."""
    return prefix.rstrip(".").rpartition(".")[0]


def is_counter(name: str) -> bool:
    return name.rpartition(".")[2] in COUNTERS


def words(path: str) -> set[str]:
    return {*re.split(r"[^a-z]+", path.lower())}


def nameless_averages(leaves: Leaves) -> list[str]:
    """Lists of tensors without names whose path says that they are means over training."""
    return [path for path in leaves.nameless if AVERAGED & words(path)]
