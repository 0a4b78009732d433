"""Normalisation that lies beside weights: which tensors of a file it is."""

from __future__ import annotations

from torch import Tensor

from robusttrain.storage.leaves import Leaves, Way

#: More channels than images have.
MOST = 16
#: What a mean over the pixels of a data set is called, and the standard deviation beside it.
PAIRS = {
    "mean": "std",
    "_mean": "_std",
    "means": "stds",
    "mu": "sigma",
    "new_mean": "new_std",
    "pixel_mean": "pixel_std",
    "image_mean": "image_std",
}


def normalising(name: str) -> bool:
    """Whether a tensor is called like a constant of normalisation."""
    last = name.rpartition(".")[2]
    return last in PAIRS or last in PAIRS.values()


def normalisations(
    way: Way, leaves: Leaves, channels: int | None
) -> dict[str, tuple[Tensor, Tensor]]:
    """Means and standard deviations beside the weights, by their path: those that stand nearest.

    Args:
        way: the weights that were taken.
        leaves: of the file.
        channels: C of the network's images, if it says so; constants have one value, or C.
    """
    used = {*way.names.values()}
    there = {**leaves.numbers, **leaves.tensors}
    found: dict[int, dict[str, tuple[Tensor, Tensor]]] = {}
    for name, mean in there.items():
        parent, dot, last = name.rpartition(".")
        std = there.get(f"{parent}{dot}{PAIRS.get(last, '')}") if last in PAIRS else None
        if std is None or name in used:
            continue
        most = max(mean.numel(), std.numel())
        many = {1, most if channels is None and most <= MOST else channels}
        if {mean.numel(), std.numel()} <= many:
            shared = _shared(parent.split("."), way.prefixes[0].split("."))
            found.setdefault(shared, {})[parent] = (mean, std)
    return found[max(found)] if found else {}


def _shared(one: list[str], other: list[str]) -> int:
    """How many parts two paths have in common at their beginning."""
    count = 0
    for mine, theirs in zip(one, other, strict=False):
        if mine != theirs:
            break
        count += 1
    return count
