"""Suites: several attacks by one name, and which of them apply to the target at hand.

``configs/suite/NAME.yaml`` lists attack presets under ``attacks``. An entry is a name, or a name
with conditions::

    attacks:
      - square
      - {attack: bpda-eot, when: {random: true, differentiable: false, identity_fits: true}}

The conditions are those of `FACTS`. What they leave out is said, with the reason, and recorded in
results.json.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from robusttrain.attacks import prepared
from robusttrain.config import presets
from robusttrain.core.errors import UserError
from robusttrain.data import ImageData
from robusttrain.evaluation import Scenario, need_two
from robusttrain.evaluation.taking import classes_of
from robusttrain.models.defended import DefendedClassifier
from robusttrain.models.defense import Defense

#: What to take in place of a preset where there are two or three classes.
FEWER_CLASSES = {
    "apgd-dlr": "apgd-margin",
    "apgd-t": "apgd-t-margin",
    "apgd-best-of": "autoattack-few-classes",
    "autoattack": "autoattack-few-classes",
    "autoattack-bpda-i": "autoattack-few-classes-bpda-i",
    "autoattack-rand": "autoattack-rand-few-classes",
    "autoattack-rand-bpda-i": "autoattack-rand-few-classes-bpda-i",
    "autoattack-through-defense": "autoattack-few-classes-through-defense",
    "autoattack-rand-through-defense": "autoattack-rand-few-classes-through-defense",
}
#: What a suite may set of the options of evaluate.py; the command line overrides it.
OPTIONS = ("survivors", "images", "known_draw", "bare_classifier", "epsilon")
#: What else it may say: of transfer between models.
OF_TRANSFER = ("epsilon", "held_out")


class Entry(NamedTuple):
    """One attack of a suite, and the facts about the target that it needs."""

    attack: str
    when: dict[str, bool]


@dataclass(frozen=True)
class Fact:
    """Something about a target that decides which attacks apply.

    Args:
        holds: whether it holds for a target and its data.
        yes, no: in words, that it holds and that it does not.
    """

    holds: Callable[[DefendedClassifier, ImageData], bool]
    yes: str
    no: str


def _example(data: ImageData) -> Tensor:
    """A grey image, as high and as wide as those that are evaluated."""
    return torch.full_like(data.first_test_batch().images[:1], 0.5, dtype=torch.float32)


def _trait(
    says: Callable[[Defense], bool], undefended: bool
) -> Callable[[DefendedClassifier, ImageData], bool]:
    """A trait of the target's defense; ``undefended`` is what holds where there is none."""
    return lambda target, data: undefended if target.defense is None else says(target.defense)


def _fits(
    asks: Callable[[Defense, Tensor], bool],
) -> Callable[[DefendedClassifier, ImageData], bool]:
    """What a defense says of images of the data's size; true where there is none."""

    def holds(target: DefendedClassifier, data: ImageData) -> bool:
        with prepared(target):
            return target.defense is None or asks(target.defense, _example(data))

    return holds


def _takes_images(target: DefendedClassifier, data: ImageData) -> bool:
    try:
        classes_of(DefendedClassifier(None, target.classifier), _example(data))
    except UserError:
        return False
    return True


#: What a condition may ask, by name.
FACTS: dict[str, Fact] = {
    "defended": Fact(
        lambda target, data: target.defense is not None,
        "the target has a defense",
        "the target has no defense",
    ),
    "random": Fact(
        lambda target, data: target.random, "the target is random", "the target is not random"
    ),
    "differentiable": Fact(
        _trait(lambda defense: defense.differentiable, undefended=True),
        "the target has no defense without a useful gradient",
        "the target's defense has no useful gradient",
    ),
    "iterative": Fact(
        _trait(lambda defense: defense.iterative, undefended=False),
        "the defense is iterative",
        "the target has no iterative transformation",
    ),
    "stepwise": Fact(
        _trait(lambda defense: defense.stepwise, undefended=False),
        "the defense takes its steps so that each can be computed anew",
        "the target has no defense whose steps could be computed anew",
    ),
    "searches": Fact(
        _trait(lambda defense: defense.searches, undefended=False),
        "the defense follows a gradient",
        "the target's defense follows no gradient that could be unrolled",
    ),
    "has_f_b": Fact(
        _trait(lambda defense: defense.has_f_b, undefended=False),
        "the defense searches on a model f_b",
        "the target has no f_b that an attacker could search on",
    ),
    "draws_patterns": Fact(
        _trait(lambda defense: defense.draws_patterns, undefended=False),
        "the defense draws patterns",
        "the target has no randomization layers that draw patterns",
    ),
    "has_twin": Fact(
        _trait(lambda defense: defense.has_twin, undefended=False),
        "the defense has a differentiable twin",
        "the target's defense has no differentiable twin",
    ),
    "keeps_size": Fact(
        _fits(lambda defense, images: defense.keeps_size(images)),
        "the defense keeps the size of images",
        "the defense changes the size of images",
    ),
    "identity_fits": Fact(
        _fits(lambda defense, images: defense.identity_fits(images)),
        "the identity can stand for what has no derivative",
        "what has no derivative changes the size of images",
    ),
    "bare_classifier": Fact(
        _takes_images,
        "the classifier takes images as they are",
        "the classifier takes no images that have not passed the defense",
    ),
    "many_classes": Fact(
        lambda target, data: data.facts().num_classes >= 4,
        "there are four classes or more",
        "there are too few classes",
    ),
    "training_images": Fact(
        lambda target, data: data.trains,
        "the data set has training images",
        "the data set has no images that an attacker's model could be trained on",
    ),
}


def entries(name: str) -> list[Entry]:
    """The attacks of a suite, with their conditions.

    Raises:
        UserError: no such suite, or one that is not written as `FACTS` and the module's head say.
    """
    where, content = f"--suite {name}", presets.read("suite", name)
    for key in content.keys() - {"attacks", *OPTIONS, *OF_TRANSFER}:
        near = difflib.get_close_matches(str(key), [*OPTIONS, *OF_TRANSFER], n=1, cutoff=0.4)
        hint = f"did you mean {near[0]}?" if near else "a suite may say attacks and"
        every = "" if near else f" {', '.join(dict.fromkeys([*OPTIONS, *OF_TRANSFER]))}"
        raise UserError(f"{where}: there is no option {key} of a suite; {hint}{every}")
    listed = content.get("attacks")
    if not isinstance(listed, list) or not listed:
        raise UserError(f"{where}: the file must hold a list of presets under 'attacks'")
    return [_entry(item, where) for item in listed]


def _entry(item: Any, where: str) -> Entry:
    if not isinstance(item, dict):
        return Entry(str(item), {})
    when = item.get("when") or {}
    if (
        not isinstance(item.get("attack"), str)
        or item.keys() - {"attack", "when"}
        or not isinstance(when, dict)
    ):
        raise UserError(
            f"{where}: entry {item} must be a preset's name, or {{attack: NAME, when: {{FACT:"
            " true}}"
        )
    for fact, wanted in when.items():
        if fact not in FACTS:
            near = difflib.get_close_matches(str(fact), FACTS, n=1, cutoff=0.4)
            hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(FACTS)}"
            raise UserError(f"{where}: {item['attack']}: there is no condition {fact}; {hint}")
        if not isinstance(wanted, bool):
            raise UserError(
                f"{where}: {item['attack']}: condition {fact} = {wanted!r}: must be true or false"
            )
    return Entry(item["attack"], when)


def suite(name: str) -> list[str]:
    """The attacks of a suite, whatever the target."""
    return list(dict.fromkeys(entry.attack for entry in entries(name)))


def suite_settings(name: str, options: Sequence[str] = OPTIONS) -> dict[str, Any]:
    """What a suite sets of the command's own options."""
    return {key: value for key, value in presets.read("suite", name).items() if key in options}


def left_out(
    suites: Sequence[str], named: Sequence[str], target: DefendedClassifier, data: ImageData
) -> dict[str, str]:
    """Attacks of suites that do not apply to a target, and why not.

    Args:
        suites: names of suites. An attack that stands in them more than once applies if one entry
            does.
        named: attacks that the user asked for by name, which stay in any case.
        target: on the CPU.
        data: its images.

    Raises:
        UserError: nothing is left.
    """
    facts: dict[str, bool] = {}
    reasons: dict[str, str] = {}
    applying = set(named)
    for entry in [entry for name in suites for entry in entries(name)]:
        for fact in entry.when:
            if fact not in facts:
                facts[fact] = FACTS[fact].holds(target, data)
        why = _why_not(entry.when, facts)
        if why:
            reasons.setdefault(entry.attack, why)
        else:
            applying.add(entry.attack)
    if suites and not applying:
        raise UserError(
            f"--suite {' '.join(suites)}: no attack applies, because"
            f" {'; '.join(set(reasons.values()))}"
        )
    return {attack: why for attack, why in reasons.items() if attack not in applying}


def refuse_few_classes(
    attacks: Mapping[str, Scenario], classes: int, option: str = "--attack"
) -> None:
    """Raise UserError, with the preset to take instead, if an attack needs more classes than the
    data have: asked before anything runs.

    Args:
        attacks: by name.
        classes: of the data.
        option: that named the attacks.
    """
    need_two(classes)
    for name, scenario in attacks.items():
        try:
            scenario.attack.need_classes(classes)
        except UserError as error:
            instead = FEWER_CLASSES.get(name)
            hint = f": take {option} {instead}" if instead else ""
            raise UserError(f"{option} {name}: {error}{hint}") from error


def _why_not(when: Mapping[str, bool], facts: Mapping[str, bool]) -> str:
    """What of the conditions does not hold, in words; empty if all do."""
    reasons = (
        FACTS[fact].no if wanted else FACTS[fact].yes
        for fact, wanted in when.items()
        if facts[fact] != wanted
    )
    return ", and ".join(reasons)
