"""Weights that other people trained: their files enter here and nowhere else.

`robusttrain.storage.reading` says what a file is, `robusttrain.storage.matching` where its weights
are. This module puts the weights into the network, with the normalisation beside them, and says in
one line what was assumed.
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
#: The name of one file of several that together hold a network.
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
        path: a safetensors file, or one of ``torch.save`` with a state dict, however wrapped.
        which: which of several weights that fit: "averaged", "raw", or a path in the file; None
            takes averaged weights if there are any.
        option: the option that named the file, for messages, which put the prefixes of `under`
            before it.

    Raises:
        OptionError: the file cannot be read, does not fit, holds NaN or infinity, or leaves a
            choice between weights; the module's weights are as they were.
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
        way, notes = _chosen(ways, leaves, which, path, option)
        normalise, note, constants = _normalisation(module, way, leaves, path)
        notes += [note] if note else []
        spoken = {full for each in ways for full in each.names.values()} | constants
        if unused := beside(spoken, leaves):
            more = f" and {len(unused) - 5} more" if len(unused) > 5 else ""
            notes.append(f"not used: {', '.join(unused[:5])}{more}")
        state = {name: leaves.tensors[full] for name, full in way.names.items()}
        stored = {tensor.dtype for tensor in state.values() if tensor.is_floating_point()}
        own = {tensor.dtype for tensor in module.state_dict().values()}
        notes += [f"stored as {str(dtype)[6:]}, used as float32" for dtype in stored - own]
        fit_state(module, state, path)
        if normalise is not None:
            normalise[0].take(normalise[1], normalise[2])
    if notes:
        logger.warning("%s %s: %s", typed(option), path, "; ".join(notes))


def adopt_normalisations(module: nn.Module, state: dict[str, Tensor]) -> None:
    """Let every `Normalize` take its constants from a state dict, if they came there with weights
    from elsewhere.
    """
    own = module.state_dict()
    constants = {
        name: value for name, value in state.items() if name not in own and normalising(name)
    }
    # The hook of `Normalize` takes the constants, also inside a `Frozen`
    module.load_state_dict(constants, strict=False)


def _chosen(
    ways: list[Way], leaves: Leaves, which: str | None, path: Path, option: str
) -> tuple[Way, list[str]]:
    """The chosen weights, and notes on the choice."""
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
    return way, _notes_on(way, ways, leaves, which, way.label in mean, chooser)


def _notes_on(
    way: Way, ways: list[Way], leaves: Leaves, which: str | None, averaged: bool, chooser: str
) -> list[str]:
    """Notes on the weights that were taken."""
    notes = []
    if way.prefixes != ("",) or way.child:
        kind = "averaged weights, " if averaged else ""
        taken = " and ".join(
            f"{show(prefix)}*" if prefix else "its names" for prefix in way.prefixes
        )
        notes.append(f"took {kind}{taken}{f', as {show(way.child)}*' if way.child else ''}")
    pairs = [
        (name.removeprefix(way.child), full.removeprefix(way.prefixes[0]))
        for name, full in way.names.items()
        if full.startswith(way.prefixes[0])
    ]
    if wrappers := {part for own, full in pairs for part in {*full.split(".")} - {*own.split(".")}}:
        notes.append(f"without {', '.join(map(show, sorted(wrappers)))} in its names")
    others = [show(other.label) for other in ways if not equal(way, other, leaves)]
    if others and not which:
        notes.append(f"{', '.join(others)} would fit too ({chooser} NAME takes another)")
    if not averaged and (lists := nameless_averages(leaves)):
        named = ", ".join(map(show, lists))
        notes.append(f"the averaged weights in {named} have no names: not used")
    return notes


def _normalisation(
    module: nn.Module, way: Way, leaves: Leaves, path: Path
) -> tuple[tuple[Normalize, list[float], list[float]] | None, str, set[str]]:
    """The constants that the network gets from the file, a note on them, and their names in the
    file.
    """
    own = [part for part in module.modules() if isinstance(part, Normalize)]
    channels = own[0].mean.numel() if own else None
    homes = {leaves.entry[full] for full in way.names.values()}
    pairs = normalisations(way, leaves, channels)
    used = {*way.names.values()}
    unread = [
        name
        for name in leaves.tensors
        if normalising(name)
        and name.startswith(way.prefixes[0])
        and leaves.entry[name] in homes
        and name not in used
    ]
    if not pairs:
        if unread:
            raise FileError(
                path,
                f"{show(unread[0])} looks like a normalisation, but not like one for"
                f" {channels or 'the'} channels of the images, with mean and std side by side",
            )
        return None, "", set()
    most = channels or max(constant.numel() for pair in pairs.values() for constant in pair)
    values = {
        name: [[float(value) for value in constant.flatten().expand(most)] for constant in pair]
        for name, pair in pairs.items()
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
    note = f"normalisation of the file: {_shown(mean, std)}{unit}"
    if not all(value > 0 for value in std):
        raise FileError(path, f"{note}: std must be greater than 0")
    constants = {
        name
        for name in leaves.tensors
        if normalising(name) and name.rpartition(".")[0] in pairs and name not in used
    }
    if not own and not any(mean) and all(value == 1 for value in std):
        return None, "", constants
    if len(own) != 1:
        raise FileError(
            path,
            f"{note}, and {type(module).__name__} has {'no' if not own else 'more than one'}"
            " robusttrain.models.Normalize that could use it: give it one, as its first layer",
        )
    theirs, ours = (
        [*each] for each in (own[0].mean.flatten().tolist(), own[0].std.flatten().tolist())
    )
    if max(abs(a - b) for a, b in zip([*mean, *std], [*theirs, *ours], strict=True)) > 1e-6:
        note += f", in place of the model's {_shown(theirs, ours)}"
    return (own[0], mean, std), note, constants


def _shown(mean: list[float], std: list[float]) -> str:
    """Constants of normalisation in a few digits."""
    return ", ".join(
        f"{name} {' '.join(f'{value:.4g}' for value in values)}"
        for name, values in (("mean", mean), ("std", std))
    )


def _refuse(module: nn.Module, leaves: Leaves, content: object, path: Path) -> None:
    """Raise a FileError with the names in the file and those of the network."""
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
    """Raise a FileError with the differences between a network and the nearest place in a file."""
    state = {name: leaves.tensors[full] for name, full in way.names.items()}
    prefix = way.prefixes[0]
    state |= {full.removeprefix(prefix): leaves.tensors[full] for full in way.extra}
    try:
        check_state(module, state, path)
    except FileError as error:
        behind = f" (in the file behind {show(prefix)})" if prefix else ""
        raise FileError(path, f"{error.reason}{behind}{_parts(path)}") from error


def _some(names: list[str]) -> str:
    """A few of the names, as text."""
    picked = names if len(names) <= 4 else [*names[:3], "...", names[-1]]
    return f"{', '.join(map(show, picked)) or 'none'} ({len(names)} in all)"


def _parts(path: Path) -> str:
    part = PART.search(path.name)
    return f"; by its name it is one of {part[1]} files: join them in one first" if part else ""
