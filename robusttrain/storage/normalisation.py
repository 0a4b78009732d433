"""Normalisation that lies beside weights: which tensors of a file it is."""

from __future__ import annotations

from torch import Tensor

from robusttrain.storage.leaves import Leaves, Way, above

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
    """Means and standard deviations beside the weights, by their path.

    They belong to the network if they lie in what holds it, or in a part of that beside it:
    ``0.mean`` with ``1.*``, ``normalize.mean`` with ``model.*``; the constants of another network
    in the file lie deeper.

    Args:
        way: the weights that were taken.
        leaves: of the file.
        channels: C of the network's images, if it says so; constants have one value, or C.
    """
    used = {*way.names.values()}
    # How deep what holds the network lies, by its path
    holders = {"": 0}
    for prefix in way.prefixes:
        parts = prefix.rstrip(".").split(".")
        holders |= {".".join(parts[:depth]): depth for depth in range(1, len(parts) + 1)}
    there = {**leaves.numbers, **leaves.tensors}
    found: dict[int, dict[str, tuple[Tensor, Tensor]]] = {}
    for name, mean in there.items():
        parent, dot, last = name.rpartition(".")
        std = there.get(f"{parent}{dot}{PAIRS.get(last, '')}") if last in PAIRS else None
        holder = parent if parent in holders else above(parent)
        if std is None or name in used or holder not in holders:
            continue
        most = max(mean.numel(), std.numel())
        many = {1, most if channels is None and most <= MOST else channels}
        if {mean.numel(), std.numel()} <= many:
            found.setdefault(holders[holder], {})[parent] = (mean, std)
    # Each of several networks in a file may have its own
    return found[max(found)] if found else {}
