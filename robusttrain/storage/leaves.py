"""The tensors of a file of weights by their paths, and what a path says of them."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

import torch
from torch import Tensor

from robusttrain.core.errors import FileError, show

#: What says that weights are a mean over training.
AVERAGED = {"ema", "swa", "average", "averaged", "avg", "shadow", "polyak"}
#: A teacher may be an average of the student, or the network that it learns from.
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
        entry: of each, the path of the dict that holds it, with a dot at its end if it is not
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
        prefixes: what stands before the names, with a dot at its end; of two parts two.
        child: what the network has before the same names.
        names: of the tensors in the file, by their names in the network.
        extra: names between them that the network has not.
    """

    prefixes: tuple[str, ...]
    child: str
    names: dict[str, str]
    extra: tuple[str, ...] = ()

    @property
    def label(self) -> str:
        """How ``which`` names it."""
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
        # The last is looked at first, and the file's order is the network's
        left += [(inner, name, depth + 1) for inner, name in reversed(below)]
    raise FileError(path, "is a tree larger or deeper than weights are: save a plain state_dict")


def _put(node: object, prefix: str, leaves: Leaves) -> list[tuple[object, str]]:
    """Put a node's tensors among the leaves; the nodes below it, with their prefixes."""
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
    """Whether only the user can know what a place's weights are to the others."""
    return bool(UNCLEAR & words(way.prefixes[0]))


def called(way: Way, name: str) -> bool:
    """Whether ``name`` is the path of a place, or a part of it."""
    prefix = way.prefixes[0].rstrip(".")
    return name in (way.label, prefix, *prefix.split(".")) or prefix.startswith(f"{name}.")


def beside(used: set[str], leaves: Leaves) -> list[str]:
    """What a file holds besides the names that are used or were spoken of, each by the part of its
    path that tells it from them.
    """
    mine = {name[: len(name) - len(rest)] for name, rest in cuts(used)}
    told: dict[str, None] = {}
    for name in leaves.tensors:
        if name not in used and name.rpartition(".")[2] not in COUNTERS:
            parts = name.split(".")
            cut = next(
                (n for n in range(1, len(parts)) if ".".join(parts[:n]) + "." not in mine),
                len(parts),
            )
            told[show(".".join(parts[:cut]))] = None
    return [*told]


def cuts(names: Iterable[str]) -> Iterator[tuple[str, str]]:
    """Every way of cutting each name in two at a dot: the name, and what is behind the dot."""
    for name in names:
        start = name.find(".")
        while start >= 0:
            yield name, name[start + 1 :]
            start = name.find(".", start + 1)


def above(prefix: str) -> str:
    """The path of what holds what a prefix stands for."""
    return prefix.rstrip(".").rpartition(".")[0]


def is_counter(name: str) -> bool:
    return name.rpartition(".")[2] in COUNTERS


def words(path: str) -> set[str]:
    return {*re.split(r"[^a-z]+", path.lower())}


def nameless_averages(leaves: Leaves) -> list[str]:
    """Lists of tensors without names whose path says that they are means over training."""
    return [path for path in leaves.nameless if AVERAGED & words(path)]
