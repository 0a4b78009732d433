"""The place of a network's weights in a file: names and shapes decide, whatever lies around them.

A file is a tree of dicts with tensors at its leaves. Written with dots, a leaf's path is a name
like ``state_dict.model.layer1.0.conv1.weight``. Every wrapping is a prefix of such a name, be it an
entry of a checkpoint or a module around the network. So there is one rule: a prefix fits if all
names and shapes of the network stand behind it, or those of a child that has all the weights of the
network. Other names only decide between several prefixes that fit: averaged weights come before raw
ones.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import torch
from torch import Tensor, nn

from robusttrain.storage.leaves import AVERAGED, Leaves, Way, above, cuts, is_counter, words
from robusttrain.storage.normalisation import normalising
from robusttrain.storage.weights import is_plain, kind_of

#: Words in paths of other values under the names of the weights, such as an optimizer's.
OTHER_VALUES = {"optimizer", "optim", "opt", "exp", "momentum", "grad", "grads", "gradients"}
#: Names that wrappers put amid others: DataParallel, torch.compile, FSDP, checkpointing.
WRAPPERS = {"module", "_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"}


def ways_into(module: nn.Module, leaves: Leaves) -> list[Way]:
    """The places in a file that hold all weights of a network: one for each set of tensors."""
    own = module.state_dict()
    by_tensors: dict[frozenset[str], Way] = {}
    for names in (_as_they_are(leaves), _unwrapped(leaves, own)):
        for child in _children(own):
            target = {name.removeprefix(child): tensor for name, tensor in own.items()}
            covered = _covered(names, leaves, target)
            needed = {name for name in target if not is_counter(name)}
            for prefix in [prefix for prefix in covered if OTHER_VALUES & words(prefix)]:
                del covered[prefix]
            full = [prefix for prefix, there in covered.items() if needed <= there.keys()]
            parameters = {name.removeprefix(child) for name, _ in module.named_parameters()}
            ways_here = [
                *(Way((prefix,), child, covered[prefix]) for prefix in full),
                *_averaged_parameters(covered, full, needed, parameters, child),
            ]
            if not full:
                ways_here += _two_parts(covered, needed, child, names)
            for way in ways_here:
                used = frozenset(way.names.values())
                # The names as they are come first, so their label stands for these tensors
                by_tensors.setdefault(used, _with_extra(way, names, leaves))
    ways = [
        Way(way.prefixes, way.child, {way.child + k: v for k, v in way.names.items()}, way.extra)
        for way in by_tensors.values()
    ]
    clean = [way for way in ways if not way.extra]
    return sorted(clean or ways, key=lambda way: way.label.count("."))


def nearest(module: nn.Module, leaves: Leaves) -> Way | None:
    """The place with most of the network's names, for an error; None if it has less than half of
    them.
    """
    own = module.state_dict()
    best: Way | None = None
    for names in (_as_they_are(leaves), _unwrapped(leaves, own)):
        for child in _children(own):
            target = {name.removeprefix(child): tensor for name, tensor in own.items()}
            for prefix, there in _covered(names, leaves, target, shapes=False).items():
                if OTHER_VALUES & words(prefix):
                    continue
                if 2 * len(there) >= len(own) and (best is None or len(there) > len(best.names)):
                    beside = {
                        name.removeprefix(prefix): full
                        for name, full in names.items()
                        if name.startswith(prefix) and leaves.entry[full] == _home(there, leaves)
                    }
                    every = {child + name: full for name, full in {**beside, **there}.items()}
                    best = Way((prefix,), child, every)
    return best


def _as_they_are(leaves: Leaves) -> dict[str, str]:
    return {name: name for name in leaves.tensors}


def _unwrapped(leaves: Leaves, own: Mapping[str, Tensor]) -> dict[str, str]:
    """The names without the `WRAPPERS` in them; names of the network's own modules stay."""
    mine = {part for name in own for part in name.split(".")}
    away = WRAPPERS - mine
    short: dict[str, str] = {}
    for name in leaves.tensors:
        thin = ".".join(part for part in name.split(".") if part not in away)
        if short.setdefault(thin, name) != name:
            return {}
    return short


def _children(own: Mapping[str, Tensor]) -> list[str]:
    """The paths of modules that hold all of the network: "", then its only child, then the child's
    only child, and so on.
    """
    children, prefix = [""], ""
    while own:
        heads = {name.removeprefix(prefix).partition(".")[0] for name in own}
        child = f"{prefix}{heads.pop()}."
        if heads or not all(name.startswith(child) for name in own):
            break
        children.append(child)
        prefix = child
    return children


def _covered(
    names: Mapping[str, str],
    leaves: Leaves,
    target: Mapping[str, Tensor],
    shapes: bool = True,
) -> dict[str, dict[str, str]]:
    """By prefix: the names of the network that stand behind it, and their names in the file."""
    covered: dict[str, dict[str, str]] = {}
    for name, full in names.items():
        for rest in (name, *(rest for _, rest in cuts([name]))):
            if rest in target and (not shapes or _alike(leaves.tensors[full], target[rest])):
                covered.setdefault(name[: len(name) - len(rest)], {})[rest] = full
    return covered


def _alike(theirs: Tensor, ours: Tensor) -> bool:
    return theirs.shape == ours.shape and kind_of(theirs) == kind_of(ours)


def _two_parts(
    covered: Mapping[str, dict[str, str]],
    needed: set[str],
    child: str,
    names: Mapping[str, str],
) -> Iterator[Way]:
    """Body and head under prefixes of their own, as in ``backbone.*`` and ``head.*``.

    Each must hold whole modules of the network, nothing besides, and both must lie side by side.
    """
    by_size = sorted(covered, key=lambda prefix: -len(covered[prefix]))[:50]
    for first in by_size:
        rest = {name for name in needed if name not in covered[first]}
        tops = {name.partition(".")[0] for name in rest}
        if not rest or tops & {name.partition(".")[0] for name in needed - rest}:
            continue
        for second in by_size:
            there = covered[second]
            if second == first or not rest <= there.keys() or above(first) != above(second):
                continue
            part = {name: full for name, full in there.items() if name.partition(".")[0] in tops}
            inside = {full for name, full in names.items() if name.startswith(second)}
            if inside == {*part.values()}:
                body = {k: v for k, v in covered[first].items() if k.partition(".")[0] not in tops}
                yield Way((first, second), child, {**body, **part})


def _averaged_parameters(
    covered: Mapping[str, dict[str, str]],
    full: list[str],
    needed: set[str],
    parameters: set[str],
    child: str,
) -> Iterator[Way]:
    """A mean of the parameters alone, whose running statistics are those of the raw weights.

    Trainers with ``shadow`` parameters use them so: they replace the network's parameters, and the
    buffers stay.
    """
    for first, there in covered.items():
        if AVERAGED & words(first) and needed - there.keys() and parameters <= there.keys():
            for second in full:
                yield Way((first, second), child, {**covered[second], **there})


def _with_extra(way: Way, names: Mapping[str, str], leaves: Leaves) -> Way:
    """The place, with the extra names in its dict, behind its prefix, that the network lacks."""
    used = {*way.names.values()}
    homes = {leaves.entry[full] for full in used}
    prefix = way.prefixes[0]
    extra = tuple(
        full
        for name, full in names.items()
        if name.startswith(prefix)
        and full not in used
        and leaves.entry[full] in homes
        and not is_counter(full)
        and not normalising(full)
        and not any(name.startswith(other) for other in way.prefixes[1:])
    )
    return Way(way.prefixes, way.child, way.names, extra)


def equal(one: Way, other: Way, leaves: Leaves) -> bool:
    """Whether two places are the same, or hold the same values."""
    if one is other:
        return True
    pairs = (
        (leaves.tensors[one.names[name]], leaves.tensors.get(other.names.get(name, "")))
        for name in one.names
    )
    return one.names.keys() == other.names.keys() and all(
        theirs is not None and is_plain(mine) and is_plain(theirs) and torch.equal(mine, theirs)
        for mine, theirs in pairs
    )


def _home(names: Mapping[str, str], leaves: Leaves) -> str:
    return leaves.entry[next(iter(names.values()))]
