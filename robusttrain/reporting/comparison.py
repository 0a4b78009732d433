"""Evaluations compared image by image (`robusttrain.evaluation.paired`)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch

from robusttrain.core.errors import UserError
from robusttrain.evaluation.class_doubts import doubts_of
from robusttrain.evaluation.paired import Difference, compared
from robusttrain.evaluation.plan import PLACES
from robusttrain.evaluation.report import VERDICTS
from robusttrain.reporting import words
from robusttrain.reporting.runs import CLEAN, WORST, Run
from robusttrain.storage.journal import differences

#: Arguments of data sets beside `PLACES` on which no verdict depends: batches, and training.
PASSING = ("batch_size", "validation", "crop", "flip", "seed")
#: Of a data set: above it images are decoded batch by batch, and known by their files; below it
#: they are in memory, and known by their pixels.
LIMIT = "memory_limit_gib"


def refuse_others(first: Run, other: Run) -> None:
    """Raise UserError unless two evaluations had the same threat, images and attacks; what differs
    is named.
    """
    for run in (first, other):
        if run.records is None and (run.folder / VERDICTS).exists():
            why = next((line for line in run.missing if VERDICTS in line), "they cannot be used")
            raise UserError(f"{run.folder} cannot be compared: {why}")
        if run.records is None:
            raise UserError(
                f"{run.folder}: has no verdicts of single images, so it cannot be compared:"
                " evaluate again without --save_verdicts false"
            )
    lines = list(_apart(first, other))
    if lines:
        more = f"; and {len(lines) - 5} more" if len(lines) > 5 else ""
        raise UserError(
            f"{other.folder} cannot be compared with {first.folder}: {'; '.join(lines[:5])}{more}:"
            " evaluate both alike"
        )


def _apart(first: Run, other: Run) -> Iterator[str]:
    assert first.records is not None
    assert other.records is not None
    threats = [_threat(run) for run in (first, other)]
    if threats[0] != threats[1]:
        yield f"threat: there {threats[0]}, here {threats[1]}"
    yield from _named("data", _data(first), _data(other))
    splits = [run.results.plan.split for run in (first, other)]
    index = [run.records.index for run in (first, other) if run.records is not None]
    if splits[0] != splits[1]:  # then one number stands for two images
        yield f"split: there {splits[0]}, here {splits[1]}"
    elif len(index[0]) != len(index[1]):
        yield f"images: there {len(index[0])}, here {len(index[1])}"
    elif not torch.equal(*index):
        common = int(torch.isin(*index).sum())
        yield f"images: {len(index[0])} each, of which {common} are the same (another --seed?)"
    elif not torch.equal(first.records.label, other.records.label):
        yield "images: the same numbers with other labels, so other data"
    elif other_pictures(first, other):
        plans = [run.results.plan.data.get("init_args") or {} for run in (first, other)]
        if plans[0].get(LIMIT) == plans[1].get(LIMIT):
            yield "images: the same numbers and labels of other pictures"
        else:
            yield f"images: whether the pictures are the same is not known, as data.{LIMIT} differs"
    names = [[*run.results.attacks] for run in (first, other)]
    if names[0] != names[1]:
        there, here = (", ".join(each) or "none" for each in names)
        yield f"attacks: there {there}, here {here}"
    else:
        yield from _named("attacks", _presets(first), _presets(other))
        yield from _other_sources(first, other)
    if first.json["survivors"] != other.json["survivors"]:
        yield f"survivors: there {first.json['survivors']}, here {other.json['survivors']}"


def _other_sources(first: Run, other: Run) -> Iterator[str]:
    """What options of attacks do not say: which weights lay in the files that their sources read,
    and how long the attacker trained a model.

    What an attacker trains against each target may differ with it.
    """
    trained = [name for name, row in first.results.attacks.items() if row.trains]
    there, here = (run.json.get("sources") or {} for run in (first, other))
    for name in first.results.attacks:
        if name in there and name in here and name not in trained and there[name] != here[name]:
            yield f"attacks.{name}: its source had other weights there than here"
    epochs = [run.results.plan.surrogate_epochs for run in (first, other)]
    if trained and epochs[0] != epochs[1]:
        yield f"surrogate_epochs: there {epochs[0]}, here {epochs[1]}"


def other_pictures(first: Run, other: Run) -> bool:
    """Whether two evaluations say that their images have another content."""
    hashes = {run.json.get("data_hash") for run in (first, other)} - {None}
    return len(hashes) > 1


def doubts(first: Run, other: Run) -> Iterator[str]:
    """A line for each reason not to rely on a comparison that can be made."""
    if any(run.json.get("data_hash") is None for run in (first, other)):
        yield (
            "that both had the same pictures is not known: an earlier version wrote one of them;"
            " numbers and labels of the images are the same"
        )
    sources = [run.json.get("sources") for run in (first, other)]
    if None in sources and (
        named := [*dict.fromkeys(name for each in sources for name in each or ())]
    ):
        yield (
            f"that the sources of {', '.join(named)} had the same weights is not known: an earlier"
            " version wrote one of them"
        )
    codes = [run.json.get("code") or {} for run in (first, other)]
    for name in codes[0].keys() & codes[1].keys():
        if codes[0][name] != codes[1][name]:
            yield f"attacks.{name}: its code was edited between the two"
    yield from _other_seeds(first, other)
    yield from _other_draws(first, other)
    yield from _other_sizes(first, other)
    for run in (first, other):
        yield from (f"{run.folder}: {words.plainly(line)}" for line in doubts_of(run.json))
        if words.doubtful(run.results):
            yield f"{run.folder}: {words.belief(run.results)}"
    for what in ("precision", "versions"):
        there, here = (run.json.get(what) for run in (first, other))
        yield from _named(what, there or {}, here or {})


def _other_seeds(first: Run, other: Run) -> Iterator[str]:
    """Chance that an interval over images does not hold."""
    seeds = [run.results.plan.seed for run in (first, other)]
    if seeds[0] != seeds[1]:
        yield (
            f"seed: there {seeds[0]}, here {seeds[1]}: random starts and draws are others, which"
            " alone may change some verdicts: evaluate both with one --seed"
        )
    trained = [run.json.get("training_seed") for run in (first, other)]
    if None not in trained and trained[0] != trained[1]:
        yield (
            f"the models were trained with other seeds (there {trained[0]}, here {trained[1]}): the"
            " intervals are of these two models, and do not hold what another seed of one training"
            " changes"
        )


def _other_draws(first: Run, other: Run) -> Iterator[str]:
    """A mean over more draws is the same figure, known better. The worst case is another one: the
    attack that is worst for an image is chosen by as many draws, and of few luck chooses.
    """
    draws = [run.json["draws"] for run in (first, other)]
    random = first.json["random"] and other.json["random"]  # others have one draw
    if random and draws[0] != draws[1] and first.results.attacks:
        yield (
            f"draws: there {draws[0]}, here {draws[1]}: fewer choose the worst attack of an image"
            " more often by luck, which leaves more in the worst case: evaluate both with one"
            " --draws"
        )


def _other_sizes(first: Run, other: Run) -> Iterator[str]:
    """How far images went that no radius bounded: there the accuracy says whether a search ended,
    and not how robust a model is.
    """
    threat = first.json["threat"]
    if threat and words.boundless(threat):
        there, here = median_changes(first), median_changes(other)
        sizes = [f"{name}: there {there[name]}, here {here[name]}" for name in there]
        yield (
            "no radius bounds what may change, so accuracies under attack say little; how far"
            f" images went that fell says more, in the median: {'; '.join(sizes)}"
        )


def median_changes(run: Run) -> dict[str, str]:
    """By attack, the median change of images that were right and fell, as it is told."""
    sizes = {
        name: run.json["attacks"][name].get("median_perturbation") for name in run.results.attacks
    }
    return {name: "-" if size is None else f"{size:.4g}" for name, size in sizes.items()}


def _named(what: str, there: Any, here: Any) -> Iterator[str]:
    for line in differences(there, here):
        yield f"{what}.{line}".replace(", now ", ", here ").replace(".init_args.", ".")


def _threat(run: Run) -> str:
    threat = run.json["threat"]
    return words.allowed(threat) if threat else "none"


def _presets(run: Run) -> dict[str, Any]:
    return {name: dict(row.preset) for name, row in run.results.attacks.items()}


def _data(run: Run) -> dict[str, Any]:
    node, passing = run.results.plan.data, (*PLACES, *PASSING)
    arguments = (node.get("init_args") or {}).items()
    return {
        "class_path": node["class_path"],
        **{key: value for key, value in arguments if key not in passing},
    }


def compare(first: Run, other: Run) -> list[Difference]:
    """Each row of two evaluations.

    Raises:
        UserError: other threats, images or attacks; what differs is named.
    """
    refuse_others(first, other)
    random = bool(first.json["random"] or other.json["random"])
    # Where images are handed on, the attacks had different images to attack.
    attacks: Sequence[str] = [] if first.json["survivors"] else list(first.results.attacks)
    rows = [CLEAN, *attacks, *([WORST] if first.results.attacks else [])]
    return [compared(first.score(row), other.score(row), row, random) for row in rows]
