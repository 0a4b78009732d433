"""The normalisation beside weights: which tensors of a file are its constants."""

from __future__ import annotations

from torch import Tensor

from robusttrain.storage.leaves import Leaves, Way, above

#: No image has more channels.
MOST = 16
#: Names of a mean over the pixels of a data set, and of the standard deviation beside it.
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
    """Whether a tensor has the name of a constant of normalisation."""
    last = name.rpartition(".")[2]
    return last in PAIRS or last in PAIRS.values()


def normalisations(
    way: Way, leaves: Leaves, channels: int | None
) -> dict[str, tuple[Tensor, Tensor]]:
    """Means and standard deviations beside the weights, by their path.

    Constants belong to the network if they lie in a dict that holds the network, or in a part
    beside the network: ``0.mean`` with ``1.*``, ``normalize.mean`` with ``model.*``. The constants
    of another network in the file lie deeper.

    Args:
        way: the weights that were taken.
        leaves: of the file.
        channels: C of the network's images, if it says so; constants have one value, or C.
    """
    used = {*way.names.values()}
    # The depths of the dicts that hold the network, by their paths
    holders = {"": 0}
    for prefix in way.prefixes:
        parts = prefix.rstrip(".").split(".")
        holders |= {".".join(parts[:depth]): depth for depth in range(1, len(parts) + 1)}
    there = {**leaves.numbers, **leaves.tensors}
    by_depth: dict[int, dict[str, tuple[Tensor, Tensor]]] = {}
    for name, mean in there.items():
        parent, dot, last = name.rpartition(".")
        std = there.get(f"{parent}{dot}{PAIRS.get(last, '')}") if last in PAIRS else None
        holder = parent if parent in holders else above(parent)
        if std is None or name in used or holder not in holders:
            continue
        most = max(mean.numel(), std.numel())
        many = {1, most if channels is None and most <= MOST else channels}
        if {mean.numel(), std.numel()} <= many:
            by_depth.setdefault(holders[holder], {})[parent] = (mean, std)
    # The deepest: each of several networks in a file may have constants of its own
    return by_depth[max(by_depth)] if by_depth else {}
