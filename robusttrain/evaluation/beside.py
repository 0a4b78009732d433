"""Evaluations beside an evaluation, of the same images: another attacker, or another target.

`known_draw` gives the attacker the draw of the randomness that scores. `bare_classifier` attacks
the classifier without its defense, at the same budget: what a defense is worth is the difference
(Croce et al. 2022).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor

from robusttrain.attacks import Attack
from robusttrain.core.errors import UserError
from robusttrain.core.repeatable import repeatable
from robusttrain.evaluation.engine import Engine, Entry, EntryStore
from robusttrain.evaluation.fitting import settle
from robusttrain.evaluation.paired import Difference, compared, in_points
from robusttrain.evaluation.records import CLEAN, Records, Rows
from robusttrain.evaluation.report import Figure
from robusttrain.evaluation.results import figure, results
from robusttrain.evaluation.scenario import Scenario
from robusttrain.evaluation.taking import classes_of
from robusttrain.models.defended import DefendedClassifier
from robusttrain.storage.files import hash_of_json

#: What is rounded off.
LEAST = 1e-3
#: Presets of attacks on the classifier alone, whose transfer is the strongest.
STRONG = ("wt-apgd", "wt-apgd-t")
KNOWN_DRAW = "known_draw"
BARE = "bare_classifier"
TRANSFERRED = "transferred"


@dataclass(frozen=True)
class Under:
    """Keeps entries under names of their own, so that those of several evaluations lie side by
    side. An attack is handed what those before it left, so its entries bear their names.

    Args:
        journal: keeps them.
        prefix: of the evaluation.
        order: its attacks.
    """

    journal: EntryStore
    prefix: str
    order: Sequence[str]

    def get(self, stage: str, images: Tensor, labels: Tensor, indices: Tensor) -> Entry | None:
        return self.journal.get(self._named(stage), images, labels, indices)

    def put(
        self, stage: str, images: Tensor, labels: Tensor, indices: Tensor, entry: Entry
    ) -> None:
        self.journal.put(self._named(stage), images, labels, indices, entry)

    def _named(self, stage: str) -> str:
        order = [*self.order]
        before = order[: order.index(stage)] if stage in order else []
        return f"{self.prefix}={stage}" + (f"={hash_of_json(before)[:8]}" if before else "")


@dataclass(frozen=True)
class Beside:
    """A second evaluation of the same images.

    Args:
        name: its key in results.json.
        engine: its target and attacks.
        about: what it is, for the estimate.
        left_out: attacks of the evaluation that it has not, and why.
        budget: gradient evaluations an image that were planned, here and in the evaluation.
        beyond: attacks that the evaluation has not; they come last, and the worst case that is
            compared leaves them out.
        judge: the evaluation's engine, where its target is asked about what broke this one.
    """

    name: str
    engine: Engine
    about: str
    left_out: Mapping[str, str] = field(default_factory=dict)
    budget: Mapping[str, int] = field(default_factory=dict)
    beyond: tuple[str, ...] = ()
    judge: Engine | None = None

    @property
    def evaluations(self) -> int:
        """Evaluations that an image costs, at most."""
        costs = [self.engine.cost(name) for name in self.engine.scenarios]
        handed = self.judge.passes_of_a_verdict if self.judge else 0
        return sum(sum(cost) for cost in costs) + self.engine.verdicts_per_image + handed

    def run(
        self, whole: Engine, images: Tensor, labels: Tensor, indices: Tensor
    ) -> tuple[Records, dict[str, float]]:
        """Attack one batch, as `Engine.run` does; ``whole`` is the evaluation's own engine."""
        self.engine.advance, self.engine.counted = whole.advance, whole.counted
        order = [*self.engine.scenarios]
        self.engine.journal = Under(whole.journal, self.name, order) if whole.journal else None
        return self.engine.run(images, labels, indices)

    def content(self, records: Records, seconds: Mapping[str, float]) -> dict[str, Any]:
        """Its figures, for results.json."""
        whole = results(records, self.engine, seconds)
        figures = {key: whole[key] for key in ("random", "clean", "attacks")}
        figures |= {"worst_case": figure(self.compared(records).worst)}
        figures |= {"left_out": dict(self.left_out), "planned_gradients": dict(self.budget)}
        if self.beyond:
            figures["beyond"] = {"attacks": [*self.beyond], "worst_case": whole["worst_case"]}
        return figures

    def compared(self, records: Records) -> Records:
        """Those of the attacks that the evaluation has as well."""
        return records.under([name for name in records.attacks if name not in self.beyond])


def known_draw(engine: Engine) -> Beside:
    """The same attacks on the same target, by an attacker who is given the draw that scores."""
    return Beside(KNOWN_DRAW, engine.disclosing(), "the attacker knows the draw that scores")


@repeatable()
def classifier_alone(
    target: DefendedClassifier, images: Tensor, indices: Tensor
) -> DefendedClassifier:
    """The classifier of a target without its defense, which knows whether it is random: it may
    draw without saying so.

    Args:
        target: the defended classifier.
        images: (B, C, H, W) in [0, 1], of which it is asked about a few.
        indices: (B,), as for `Engine.run`.

    Raises:
        UserError: it takes no images that have not passed the defense.
    """
    bare = DefendedClassifier(None, target.classifier)
    classes_of(bare, images, "the classifier without its defense")
    settle(bare, images, indices)
    return bare


def bare_classifier(
    engine: Engine,
    precision: Mapping[str, torch.dtype],
    further: Mapping[str, Scenario] = MappingProxyType({}),
    bare: DefendedClassifier | None = None,
) -> Beside:
    """The same attacks on the classifier without its defense, at the same budget.

    What goes through or around the defense differentiates the classifier itself; attacks that
    then are the same run once. What averages over the defense's draws takes one. The gradient
    evaluations that all this saves are spent on more steps, so that both targets face as many.
    Attacks that cannot be run behind the defense come on top, and stand beside the comparison.

    Args:
        engine: of the defended target.
        precision: in which each attack differentiates.
        further: attacks that apply to the classifier alone; they differentiate in float32.
        bare: as `classifier_alone` has it; None asks it nothing, and believes what it says of
            itself.
    """
    bare = bare or DefendedClassifier(None, engine.target.classifier)
    chosen: dict[str, Scenario] = {}
    left_out: dict[str, str] = {}
    for name, each in {**engine.scenarios, **further}.items():  # the further ones last
        attack = each.attack if bare.random else each.attack.for_one_draw()
        scenario = Scenario(attack, each.source.on_classifier())
        same = next((other for other, its in chosen.items() if its == scenario), None)
        if same:
            left_out[name] = f"without the defense it is {same}"
            continue
        try:
            source = scenario.source(bare)
            attack.check(source)
        except UserError as error:
            left_out[name] = str(error)
            continue
        chosen[name] = scenario
    beyond = {name: each for name, each in chosen.items() if name not in engine.scenarios}
    shared = {name: each for name, each in chosen.items() if name in engine.scenarios}
    effort = _gradients(engine.scenarios) / max(1, _gradients(shared))
    matched = {
        name: replace(each, attack=_longer(each.attack, effort)) for name, each in shared.items()
    }
    kinds = {name: precision.get(name, torch.float32) for name in chosen}
    own = Engine(
        bare,
        {**matched, **beyond},
        engine.seed,
        engine.scoring_draws,
        kinds,
        survivors=True,
        keep_images=True,
        leave_early=engine.leave_early,
        compiled=engine.compiled,
    )
    budget = {"defended": _gradients(engine.scenarios), "bare": _gradients(matched)}
    about = "the classifier without its defense"
    return Beside(BARE, own, about, left_out, budget, (*beyond,), engine)


def transferred(
    engine: Engine,
    images: Tensor,
    labels: Tensor,
    indices: Tensor,
    defended: Records,
    bare: Records,
) -> Records:
    """Verdicts behind the defense on the adversarial images that broke the classifier alone.

    Attacks through or around a defense may miss what transfer finds (Croce et al. 2022): where the
    defense makes its classifier more certain of what it says, the gradient behind it vanishes, and
    what fooled the classifier stays wrong.

    Args:
        engine: of the defended target.
        images: (B, C, H, W) in [0, 1].
        labels, indices: (B,), as for `Engine.run`.
        defended: of the same images, behind the defense.
        bare: of the classifier alone, with adversarial images, of attacks that are compared.

    Returns:
        Two tables of rows: those of the images as they are, and those under what is handed over,
        ``attacked`` where the image fell without the defense and stands with it.
    """
    clean, adversarial = defended.of(CLEAN), images.clone()
    fallen = torch.zeros(len(images), dtype=torch.bool)
    distance = torch.zeros(len(images))
    for name in bare.attacks:
        rows = bare.of(name)
        broke = rows.attacked & (rows.chosen_by <= 0.5) & ~fallen
        if rows.images is not None and broke.any():
            adversarial[broke.to(images.device)] = rows.images[broke].to(adversarial)
            distance[broke] = rows.distance[broke].float()
            fallen |= broke
    asked = fallen & (defended.worst > 0)
    score, select = clean.score.clone(), clean.select.clone()
    if asked.any():
        which = asked.nonzero().squeeze(1).to(images.device)
        entry = engine.judge(adversarial[which], labels[which], indices[which])
        score[asked], select[asked] = entry["score"], entry["select"]
    nothing = torch.zeros(len(images))
    rows = Rows(
        *(clean.index, clean.label, score, select, asked),
        torch.where(asked, distance, nothing),
        *(nothing, nothing),
    )
    return Records({CLEAN: clean, TRANSFERRED: rows})


def with_transferred(
    handed: Records, defended: Records, bare: Records, random: bool
) -> dict[str, Any]:
    """What is left behind the defense with the images that broke the classifier alone, and what
    the defense adds then, for results.json.

    Args:
        handed: of `transferred`, all images.
        defended, bare, random: as for `added`.
    """
    # No attack has "=" in its name, and one may be called as this table is.
    both = Records({**defended.rows, f"{BARE}={TRANSFERRED}": handed.of(TRANSFERRED)})
    return {
        "images": int(handed.of(TRANSFERRED).attacked.sum()),
        "worst_case": figure(both.worst),
        "added": added(bare, both, random).get("worst_case"),
    }


def _gradients(scenarios: Mapping[str, Scenario]) -> int:
    return sum(each.attack.cost().gradients for each in scenarios.values())


def _longer(attack: Attack, effort: float) -> Attack:
    """An attack with ``effort`` times its steps, if steps take gradients."""
    if effort <= 1 or not attack.cost().gradients:
        return attack
    return attack.scaled(effort) or attack


def added(bare: Records, defended: Records, random: bool, agreeing: bool = True) -> dict[str, Any]:
    """What a defense adds to its classifier, by image, for results.json: clean and worst case.

    Args:
        bare: of the classifier alone.
        defended: of the same images behind the defense.
        random: whether one of the two draws.
        agreeing: as for `compared`.
    """
    pairs = {
        "clean": (bare.of(CLEAN).right, defended.of(CLEAN).right),
        "worst_case": (bare.worst, defended.worst),
    }
    return {
        name: _difference(compared(before, after, name, random, agreeing))
        for name, (before, after) in pairs.items()
        if len(before)
    }


def _difference(each: Difference) -> dict[str, Any]:
    ends = [None if math.isnan(end) else round(end, 6) for end in (each.low, each.high)]
    return {
        "difference": round(each.mean, 6),
        "ci95": ends,
        "p": None if math.isnan(each.p) else each.p,
        "test": each.how,
        "lost": each.lost,
        "won": each.won,
    }


def sentence(content: Mapping[str, Any]) -> str | None:
    """What the defense adds to its own base model, in a sentence; None where nobody looked. Where
    the attacks missed what transfer finds (`too_weak`), it is in the figures.
    """
    base = content.get(BARE)
    if not base or "worst_case" not in base.get("added", {}):
        return None
    row, after, how = base["added"]["worst_case"], content["worst_case"], "with it"
    if too_weak(content):
        row, after = base[TRANSFERRED]["added"], base[TRANSFERRED]["worst_case"]
        how = "with it and with what broke the classifier alone"
    further = base.get("beyond")
    return (
        f"The defense adds {_points(row)} to its own base model under attack:"
        f" {Figure.of(base['worst_case'])} without it, {Figure.of(after)} {how}."
        + (f" {on_top(further)}" if further else "")
    )


def _points(row: Mapping[str, Any]) -> str:
    low, high = row["ci95"]
    return in_points(row["difference"], low, high, form=".1f")


def too_weak(content: Mapping[str, Any]) -> str | None:
    """A line that what broke the classifier alone breaks it behind the defense, where the attacks
    did not; None where they missed nothing of it.
    """
    handed = (content.get(BARE) or {}).get(TRANSFERRED)
    if not handed or not handed["added"]:
        return None
    left = Figure.of(handed["worst_case"])
    before = content["worst_case"]["robust_accuracy"]
    # Less than an image may be the luck of draws.
    if left.accuracy is None or (before - left.accuracy) * content["images"] < 1 - LEAST:
        return None
    missing = [name for name in STRONG if name not in content["attacks"]]
    fix = "give the attacks more steps"
    if missing and content["threat"]["norm"] != "linf":  # the presets' own
        fix = "add such an attack (source: robusttrain.attacks.ClassifierOnly) in the same threat"
    elif missing:
        fix = "add " + " ".join(f"--attack {name}" for name in missing)
    return (
        "the attacks on the defended model missed what transfer finds: what broke the classifier"
        f" alone, handed over, leaves {left} behind the defense, which then adds"
        f" {_points(handed['added'])}; {fix}"
    )


def on_top(further: Mapping[str, Any]) -> str:
    """What attacks leave of the classifier that could not be run behind its defense, in a
    sentence.
    """
    names = ", ".join(further["attacks"])
    return (
        f"Without the defense {names} can be run as well, and with that"
        f" {Figure.of(further['worst_case'])} is left; behind the defense nobody ran it, so this"
        " is not compared."
    )
