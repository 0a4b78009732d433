"""Where in a file the weights of a network are: whatever lies around them, names and shapes decide.

A file is a tree of dicts with tensors at its leaves. Written with dots, a leaf's path is a name
like ``state_dict.model.layer1.0.conv1.weight``, and every wrapping, an entry of a checkpoint as
well as a module around the network, is a prefix of it. So there is one rule: a prefix is taken if
what stands behind it are all the names and shapes of the network, or of a child that is all of
the network that has weights. Names of other things never decide, but between several that fit:
averaged weights come before raw ones.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import torch
from torch import Tensor, nn

from robusttrain.storage.leaves import AVERAGED, Leaves, Way, above, cuts, is_counter, words
from robusttrain.storage.normalisation import normalising
from robusttrain.storage.weights import is_plain, kind_of

#: What an optimizer keeps under the names of the weights.
OTHER_VALUES = {"optimizer", "optim", "opt", "exp", "momentum", "grad", "grads", "gradients"}
#: Wrappers that leave their name amid others: DataParallel, torch.compile, FSDP, checkpointing.
WRAPPERS = {"module", "_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"}


def ways_into(module: nn.Module, leaves: Leaves) -> list[Way]:
    """The places in a file that hold all weights of a network: one for each set of tensors."""
    own = module.state_dict()
    found: dict[frozenset[str], Way] = {}
    for names in (_as_they_are(leaves), _unwrapped(leaves, own)):
        for child in _children(own):
            target = {name.removeprefix(child): tensor for name, tensor in own.items()}
            covered = _covered(names, leaves, target)
            needed = {name for name in target if not is_counter(name)}
            for prefix in [prefix for prefix in covered if OTHER_VALUES & words(prefix)]:
                del covered[prefix]
            full = [prefix for prefix, there in covered.items() if needed <= there.keys()]
            parameters = {name.removeprefix(child) for name, _ in module.named_parameters()}
            found_here = [
                *(Way((prefix,), child, covered[prefix]) for prefix in full),
                *_averaged_parameters(covered, full, needed, parameters, child),
            ]
            if not full:
                found_here += _two_parts(covered, needed, child, names)
            for way in found_here:
                used = frozenset(way.names.values())
                # Over one file as it is and without wrappers, the shortest prefix tells most
                found.setdefault(used, _with_extra(way, names, leaves))
    ways = [
        Way(way.prefixes, way.child, {way.child + k: v for k, v in way.names.items()}, way.extra)
        for way in found.values()
    ]
    clean = [way for way in ways if not way.extra]
    return sorted(clean or ways, key=lambda way: way.label.count("."))


def nearest(module: nn.Module, leaves: Leaves) -> Way | None:
    """The place whose names are most like the network's, for an error; None if less than half
    are.
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
    """The names without what wrappers put amid them; those of the network's own modules stay."""
    mine = {part for name in own for part in name.split(".")}
    away = WRAPPERS - mine
    short: dict[str, str] = {}
    for name in leaves.tensors:
        thin = ".".join(part for part in name.split(".") if part not in away)
        if short.setdefault(thin, name) != name:
            return {}
    return short


def _children(own: Mapping[str, Tensor]) -> list[str]:
    """The paths of modules that hold all that the network has: "" first, then the child, its
    child.
    """
    found, prefix = [""], ""
    while own:
        heads = {name.removeprefix(prefix).partition(".")[0] for name in own}
        child = f"{prefix}{heads.pop()}."
        if heads or not all(name.startswith(child) for name in own):
            break
        found.append(child)
        prefix = child
    return found


def _covered(
    names: Mapping[str, str],
    leaves: Leaves,
    target: Mapping[str, Tensor],
    shapes: bool = True,
) -> dict[str, dict[str, str]]:
    """By prefix, which names of the network stand behind it: to their names in the file."""
    found: dict[str, dict[str, str]] = {}
    for name, full in names.items():
        for rest in (name, *(rest for _, rest in cuts([name]))):
            if rest in target and (not shapes or _alike(leaves.tensors[full], target[rest])):
                found.setdefault(name[: len(name) - len(rest)], {})[rest] = full
    return found


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

    So do trainers that keep ``shadow`` parameters: they are put into the network in place of its
    own, and the buffers stay.
    """
    for first, there in covered.items():
        if AVERAGED & words(first) and needed - there.keys() and parameters <= there.keys():
            for second in full:
                yield Way((first, second), child, {**covered[second], **there})


def _with_extra(way: Way, names: Mapping[str, str], leaves: Leaves) -> Way:
    """The place, with names in the same dict behind the same prefix that the network has not."""
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
    """Whether two places are one, or hold the same values."""
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
