"""Weights of other people's training: the one place through which their files enter.

What a file is, `robusttrain.storage.reading` says; where in it the weights are,
`robusttrain.storage.matching`. Here they get into the network, with the normalisation that lies
beside them, and what was assumed is said in one line.
"""

from __future__ import annotations

import logging
import os
import re
from pathlib import Path

from torch import Tensor, nn

from robusttrain.core.errors import FileError, OptionError, naming, show, typed
from robusttrain.models.normalize import Normalize
from robusttrain.storage.leaves import (
    Leaves,
    Way,
    beside,
    called,
    is_averaged,
    is_unclear,
    leaves_of,
    nameless_averages,
)
from robusttrain.storage.matching import equal, nearest, ways_into
from robusttrain.storage.normalisation import normalisations, normalising
from robusttrain.storage.reading import read_content
from robusttrain.storage.weights import check_state, described, fit_state

logger = logging.getLogger(__name__)
#: One file of several that hold a network together.
PART = re.compile(r"-0*\d+-of-0*(\d+)\.")


def load_weights(
    module: nn.Module,
    path: str | os.PathLike[str],
    which: str | None = None,
    option: str = "weights",
) -> None:
    """Load all weights of ``module`` from a file, or none; log one line where something was
    assumed.

    Args:
        module: takes images in [0, 1]; its `Normalize`, if any, gets the constants beside the
            weights.
        path: safetensors, or what ``torch.save`` wrote: a state dict, however wrapped.
        which: of several weights that fit: "averaged", "raw", or the path of one in the file; None
            takes averaged ones if there are any.
        option: what named the file, for messages; `under` what it stands, they say.

    Raises:
        OptionError: it cannot be read, does not fit, holds NaN or infinity, or it is not clear
            what is meant; the weights are as they were.
    """
    path = Path(path)
    with naming(option):
        content = read_content(path)
        leaves = leaves_of(content, path)
        ways = ways_into(module, leaves)
        if not ways:
            _refuse(module, leaves, content, path)
        if ways[0].extra:
            _unfit(module, ways[0], leaves, path)
        way, told = _chosen(ways, leaves, which, path, option)
        normalise, note, constants = _normalisation(module, way, leaves, path)
        told += [note] if note else []
        spoken = {full for each in ways for full in each.names.values()} | constants
        if unused := beside(spoken, leaves):
            more = f" and {len(unused) - 5} more" if len(unused) > 5 else ""
            told.append(f"not used: {', '.join(unused[:5])}{more}")
        state = {name: leaves.tensors[full] for name, full in way.names.items()}
        stored = {tensor.dtype for tensor in state.values() if tensor.is_floating_point()}
        own = {tensor.dtype for tensor in module.state_dict().values()}
        told += [f"stored as {str(dtype)[6:]}, used as float32" for dtype in stored - own]
        fit_state(module, state, path)
        if normalise is not None:
            normalise[0].take(normalise[1], normalise[2])
    if told:
        logger.warning("%s %s: %s", typed(option), path, "; ".join(told))


def adopt_normalisations(module: nn.Module, state: dict[str, Tensor]) -> None:
    """Let every `Normalize` whose constants a state dict holds take them: they came with weights
    from elsewhere.
    """
    own = module.state_dict()
    constants = {
        name: value for name, value in state.items() if name not in own and normalising(name)
    }
    # The hook of `Normalize` takes them, also where a module is out of sight (`Frozen`)
    module.load_state_dict(constants, strict=False)


def _chosen(
    ways: list[Way], leaves: Leaves, which: str | None, path: Path, option: str
) -> tuple[Way, list[str]]:
    """The weights that are meant, and what to say of the choice."""
    mean = {way.label for way in ways if is_averaged(way, leaves)}
    if which in (None, "averaged", "raw"):
        averaged = [way for way in ways if way.label in mean]
        raw = [way for way in ways if way.label not in mean]
        fit = {None: averaged or raw, "averaged": averaged, "raw": raw}[which]
        kind = which or ""
    else:
        fit, kind = [way for way in ways if called(way, which)], which
    choices = ", ".join(show(way.label) for way in ways)
    key = "_which" if " " in option else ".which"  # in a file a key, else an option
    chooser = f"{typed(option)}{key}"
    if not fit:
        raise OptionError(
            f"{option}{key}", kind, f"{path} has no such weights that fit: there are {choices}"
        )
    # As robusttrain.config.checkpoints.newest does
    best = [way for way in fit if "best" in way.prefixes[0].split(".")]
    if len(fit) > 1 and len(best) == 1 and not which:
        fit = best
    unclear = not which and any(is_unclear(way) for way in ways)
    if not all(equal(fit[0], other, leaves) for other in (ways if unclear else fit)):
        raise FileError(
            path,
            f"several weights in it fit, and only you know which are meant: {choices}: choose with"
            f" {chooser} NAME",
        )
    way = fit[0]
    return way, _told(way, ways, leaves, which, way.label in mean, chooser)


def _told(
    way: Way, ways: list[Way], leaves: Leaves, which: str | None, averaged: bool, chooser: str
) -> list[str]:
    """What to say of the weights that were taken."""
    told = []
    if way.prefixes != ("",) or way.child:
        kind = "averaged weights, " if averaged else ""
        taken = " and ".join(
            f"{show(prefix)}*" if prefix else "its names" for prefix in way.prefixes
        )
        told.append(f"took {kind}{taken}{f', as {show(way.child)}*' if way.child else ''}")
    pairs = [
        (name.removeprefix(way.child), full.removeprefix(way.prefixes[0]))
        for name, full in way.names.items()
        if full.startswith(way.prefixes[0])
    ]
    if wrappers := {part for own, full in pairs for part in {*full.split(".")} - {*own.split(".")}}:
        told.append(f"without {', '.join(map(show, sorted(wrappers)))} in its names")
    others = [show(other.label) for other in ways if not equal(way, other, leaves)]
    if others and not which:
        told.append(f"{', '.join(others)} would fit too ({chooser} NAME takes another)")
    if not averaged and (lists := nameless_averages(leaves)):
        named = ", ".join(map(show, lists))
        told.append(f"the averaged weights in {named} have no names: not used")
    return told


def _normalisation(
    module: nn.Module, way: Way, leaves: Leaves, path: Path
) -> tuple[tuple[Normalize, list[float], list[float]] | None, str, set[str]]:
    """Which constants the network gets from the file, what to say of them, and their names in
    it.
    """
    own = [part for part in module.modules() if isinstance(part, Normalize)]
    channels = own[0].mean.numel() if own else None
    homes = {leaves.entry[full] for full in way.names.values()}
    found = normalisations(way, leaves, channels)
    used = {*way.names.values()}
    unread = [
        name
        for name in leaves.tensors
        if normalising(name)
        and name.startswith(way.prefixes[0])
        and leaves.entry[name] in homes
        and name not in used
    ]
    if not found:
        if unread:
            raise FileError(
                path,
                f"{show(unread[0])} looks like a normalisation, but not like one for"
                f" {channels or 'the'} channels of the images, with mean and std side by side",
            )
        return None, "", set()
    most = channels or max(constant.numel() for pair in found.values() for constant in pair)
    values = {
        name: [[float(value) for value in constant.flatten().expand(most)] for constant in pair]
        for name, pair in found.items()
    }
    mean, std = next(iter(values.values()))
    if any(pair != [mean, std] for pair in values.values()):
        names = ", ".join(show(name) or "the file itself" for name in values)
        raise FileError(path, f"holds different normalisations ({names}): leave one in it")
    unit = ""
    # No mean of values in [0, 1] is above 1, and no deviation above 0.5
    if max(mean) > 1 or max(std) > 1 + 1e-6:
        mean, std = [value / 255 for value in mean], [value / 255 for value in std]
        unit = ", given there for values up to 255"
    told = f"normalisation of the file: {_shown(mean, std)}{unit}"
    if not all(value > 0 for value in std):
        raise FileError(path, f"{told}: std must be greater than 0")
    constants = {
        name
        for name in leaves.tensors
        if normalising(name) and name.rpartition(".")[0] in found and name not in used
    }
    if not own and not any(mean) and all(value == 1 for value in std):
        return None, "", constants
    if len(own) != 1:
        raise FileError(
            path,
            f"{told}, and {type(module).__name__} has {'no' if not own else 'more than one'}"
            " robusttrain.models.Normalize that could use it: give it one, as its first layer",
        )
    theirs, ours = (
        [*each] for each in (own[0].mean.flatten().tolist(), own[0].std.flatten().tolist())
    )
    if max(abs(a - b) for a, b in zip([*mean, *std], [*theirs, *ours], strict=True)) > 1e-6:
        told += f", in place of the model's {_shown(theirs, ours)}"
    return (own[0], mean, std), told, constants


def _shown(mean: list[float], std: list[float]) -> str:
    """Constants of normalisation in a few digits."""
    return ", ".join(
        f"{name} {' '.join(f'{value:.4g}' for value in values)}"
        for name, values in (("mean", mean), ("std", std))
    )


def _refuse(module: nn.Module, leaves: Leaves, content: object, path: Path) -> None:
    """Say what the file has, and what the network wants."""
    if not leaves.tensors:
        raise FileError(
            path,
            f"holds no state dict (names to tensors), but {described(content)}: save"
            " model.state_dict()",
        )
    near = nearest(module, leaves)
    if near is not None:
        _unfit(module, near, leaves, path)
    theirs, ours = [*leaves.tensors], [*module.state_dict()]
    if any(
        name.rpartition(".")[2].startswith("_flat_param") or "flat_param" in name for name in theirs
    ):
        raise FileError(
            path, "holds flat parameters of FSDP: save a full state dict (FULL_STATE_DICT)"
        )
    raise FileError(
        path,
        f"does not fit {type(module).__name__}: its names are {_some(theirs)}, the network's"
        f" {_some(ours)}{_parts(path)}",
    )


def _unfit(module: nn.Module, way: Way, leaves: Leaves, path: Path) -> None:
    """Say what is different between a network and what is nearest to it in a file."""
    state = {name: leaves.tensors[full] for name, full in way.names.items()}
    prefix = way.prefixes[0]
    state |= {full.removeprefix(prefix): leaves.tensors[full] for full in way.extra}
    try:
        check_state(module, state, path)
    except FileError as error:
        behind = f" (in the file behind {show(prefix)})" if prefix else ""
        raise FileError(path, f"{error.reason}{behind}{_parts(path)}") from error


def _some(names: list[str]) -> str:
    """A few names of many."""
    picked = names if len(names) <= 4 else [*names[:3], "...", names[-1]]
    return f"{', '.join(map(show, picked)) or 'none'} ({len(names)} in all)"


def _parts(path: Path) -> str:
    found = PART.search(path.name)
    return f"; by its name it is one of {found[1]} files: join them in one first" if found else ""
