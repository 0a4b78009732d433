"""Checks of the strongest attack against itself with another objective, and from another start.

A gradient that is right may still lead the wrong way. Cross entropy follows the mean of all wrong
classes where logits are small, and nothing where they are large; a margin follows the nearest class
at any scale.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from robusttrain.attacks import (
    DLR,
    Attack,
    Cost,
    CrossEntropy,
    IdentityBackward,
    Margin,
    Objective,
    ProjectedGradient,
    TargetedMargin,
    Threat,
)
from robusttrain.attacks.parts.updates import STEEPEST
from robusttrain.core.rng import Rng
from robusttrain.evaluation.audit.changes import ascent, climber, estimator_of, objective_of, parts
from robusttrain.evaluation.audit.finding import (
    CARLINI,
    CROCE,
    TASHIRO,
    Beaten,
    Finding,
    Needless,
    NotRun,
    beaten,
    words,
)
from robusttrain.evaluation.audit.subject import Subject

#: Objectives that stand in for the attack's own, in the order of their trial: in words, and the
#: preset that has them.
OBJECTIVES: tuple[tuple[Objective, str, str], ...] = (
    (Margin(), "the margin", "apgd-margin"),
    (DLR(), "DLR", "apgd-dlr"),
    (TargetedMargin(target="second"), "the margin to the runner-up", "apgd-t-margin"),
    (CrossEntropy(), "cross entropy", "apgd-ce"),
)
#: How many of them are tried.
TRIED = 3
#: The most steps of the audit's own ascent.
STEPS = 20
#: Steps of length epsilon that spread the starts (Tashiro et al. 2020, table 5: two suffice).
SPREAD = 2
#: Starts: a random corner of the ball, and one that is spread in the answers.
STARTS = ("a random corner", "a start spread by the answers")


@dataclass(frozen=True)
class _Answers(Objective):
    """w . z for a random direction w of the answers, uniform in [-1, 1]^K (Tashiro et al. 2020,
    eq. 2).
    """

    classes: int

    def aim(self, model: nn.Module, images: Tensor, labels: Tensor, rng: Rng) -> Tensor:
        return rng.fold("direction").uniform((self.classes,), -1, 1)

    def __call__(self, logits: Tensor, goal: Tensor) -> Tensor:
        return (logits * goal).sum(dim=1)


@dataclass(frozen=True)
class _Started(Attack):
    """An ascent from another start: the end of ``spread``, or a random corner where that is
    None.
    """

    ascent: ProjectedGradient
    spread: ProjectedGradient | None
    threat: Threat

    def cost(self) -> Cost:
        first = self.spread.cost() if self.spread else Cost(0, 0)
        then = self.ascent.cost()
        return Cost(first.gradients + then.gradients, first.queries + then.queries)

    def run(self, source: nn.Module, images: Tensor, labels: Tensor, rng: Rng) -> Tensor:
        if self.spread:
            start = self.spread.run(source, images, labels, rng.fold("spread"))
        else:
            signs = rng.fold("corner").integers(images.shape[1:], 0, 2).to(images.dtype) * 2 - 1
            step, _ = STEEPEST[self.threat.norm].step(signs, None)
            start = self.threat.project(images + self.threat.epsilon * step, images)
        return self.ascent.climb(source, start, images, labels, rng)


def with_other_objectives(attack: Attack, classes: int) -> list[tuple[str, str, Attack]]:
    """Versions of an attack that follows gradients, each with an objective that it does not have:
    in words, the preset, and the attack. Of a wrapper it is one run of its first such part.

    An attack that says nothing of its objective is replaced by the audit's own ascent.
    """
    used = {type(each.maximises) for each in parts(attack) if each.cost().gradients}
    base = climber(attack)
    versions: list[tuple[str, str, Attack]] = []
    for objective, text, preset in OBJECTIVES:
        if type(objective) in used or objective.least_classes > classes or len(versions) == TRIED:
            continue
        version = base.with_objective(objective)
        if version is None and base.threat.norm in STEEPEST:
            version = replace(ascent(base, STEPS), objective=objective, random_start=True)
        if version is not None:
            versions.append((text, preset, version))
    return versions


def with_other_starts(attack: Attack, classes: int) -> list[tuple[str, Attack]]:
    """The audit's own ascents with the attack's objective and gradient, from each of `STARTS`."""
    estimator = estimator_of(attack)
    if attack.threat.norm not in STEEPEST or estimator is None:
        return []
    own = climber(attack).cost().gradients // max(1, estimator.evaluations)
    plain = ascent(attack, max(1, min(STEPS, own)))
    spread = replace(
        plain,
        steps=SPREAD,
        step_size=attack.threat.epsilon or 1.0,
        random_start=True,
        objective=_Answers(classes),
    )
    corner, answers = (_Started(plain, each, attack.threat) for each in (None, spread))
    return list(zip(STARTS, (corner, answers), strict=True))


def evaluations(attack: Attack, cost: int, decided: bool, classes: int = 10) -> int:
    """The most evaluations that both checks take for an image of the sample.

    Args:
        attack: the strongest attack.
        cost: evaluations that it takes itself.
        decided: whether the sample decides; else as many more images have to.
        classes: K.
    """
    if not attack.cost().gradients:
        return 0
    versions = [version for _, _, version in with_other_objectives(attack, classes)]
    versions += [version for _, version in with_other_starts(attack, classes)]
    once = sum(sum(version.cost()) for version in versions)
    return once if decided else cost + 2 * once


def another_objective(subject: Subject) -> Finding | None:
    """Whether the same attack with another objective breaks what the evaluation leaves standing."""
    attack = subject.scenario.attack
    _need_gradients(subject)
    versions = with_other_objectives(attack, subject.classes)
    if not versions:
        raise NotRun("the attack's objective cannot be exchanged for another one")
    result, size, fell = _against(subject, [(text, version) for text, _, version in versions])
    preset = max(versions, key=lambda each: fell[each[0]])[1]
    return subject.finding(
        result,
        size,
        check="another objective",
        severity="weak",
        measured=(
            "with another objective the same attack breaks {count} of {size} images more"
            f" ({_shares(subject, fell)})"
        ),
        source=f"{CROCE}, section 3 (the loss); {CARLINI}, section 5.1 (loss functions)",
        remedy=f"run {command(subject, preset)}",
        within_luck=True,
    )


def another_start(subject: Subject) -> Finding | None:
    """Whether an ascent along the same gradient from elsewhere in the ball breaks what the
    evaluation leaves standing.
    """
    attack = subject.scenario.attack
    _need_gradients(subject)
    versions = with_other_starts(attack, subject.classes)
    if not versions:
        raise NotRun(f"there is no steepest ascent in the norm {attack.threat.norm}")
    result, size, fell = _against(subject, versions)
    return subject.finding(
        result,
        size,
        check="another start",
        severity="weak",
        measured=(
            "the same gradient followed from elsewhere in the ball breaks {count} of {size} images"
            f" more ({_shares(subject, fell)})"
        ),
        source=f"{CARLINI}, section 4.8 (random starts); {TASHIRO}, section 4.1",
        remedy=f"run {command(subject, _preset_of(attack))} --attack.restarts 5",
        within_luck=True,
    )


def _need_gradients(subject: Subject) -> None:
    subject.need_standing()
    if not subject.scenario.attack.cost().gradients:
        raise Needless("the strongest attack follows no gradient")
    if subject.scenario.attack.threat.epsilon <= 0:
        raise Needless("the radius is zero")


def _against(
    subject: Subject, versions: list[tuple[str, Attack]]
) -> tuple[Beaten, int, dict[str, float]]:
    """What the versions break of the images that stand, of how many images, and each version's
    part of it.

    A few images that fall may be luck, or the first of many. The rest of the candidates then
    decide.
    """
    best, fell = _worst_of(subject, versions)
    ours, others = subject.ours, subject.judge(best, subject.standing)
    result = beaten(ours, others, subject.size, subject.random)
    rest = subject.rest
    if result.more or result.images < 1 or rest is None:
        return result, subject.size, fell
    size = subject.size + rest.size
    if not len(rest.standing):
        return beaten(ours, others, size, subject.random), size, fell
    best, more = _worst_of(rest, versions)
    ours = torch.cat([ours, rest.ours])
    others = torch.cat([others, rest.judge(best, rest.standing)])
    fell = {text: count + more[text] for text, count in fell.items()}
    return beaten(ours, others, size, subject.random), size, fell


def _worst_of(
    subject: Subject, versions: list[tuple[str, Attack]]
) -> tuple[Tensor, dict[str, float]]:
    """For each standing image the worst of what the attack and its versions returned, (m, C, H, W),
    and how many images each version broke first.

    On a random target the worst is chosen by draws that judge nothing, so luck is no success.
    """
    where, source = subject.standing, subject.source(subject.main)
    best = subject.trace.returned[where]
    lowest = subject.judge(best, where, purpose="choose")
    left, fell = torch.arange(len(where)), {}
    for text, version in versions:
        rows = where[left.to(where.device)]
        adversarial = subject.attack(version, source, rows, f"instead: {text}")
        score = subject.judge(adversarial, rows, purpose="choose")
        lower = score < lowest[left]
        fell[text] = float((lowest[left] - score)[lower].sum())
        best[left[lower].to(best.device)] = adversarial[lower.to(adversarial.device)].to(best.dtype)
        lowest[left] = torch.minimum(score, lowest[left])
        if not subject.random:
            left = left[score > 0]
    return best, fell


def _shares(subject: Subject, fell: dict[str, float]) -> str:
    by = "by the draws that chose, " if subject.random else ""
    return by + ", ".join(f"{text} {words(count)}" for text, count in fell.items())


def _preset_of(attack: Attack) -> str:
    """The preset with the attack's own objective; that of cross entropy for any without one."""
    own = type(objective_of(attack))
    return next((name for each, _, name in OBJECTIVES if type(each) is own), "apgd-ce")


def command(subject: Subject, preset: str) -> str:
    """Options that attack as the strongest attack does, with another preset's objective."""
    line = f"--attack {preset}"
    if isinstance(subject.scenario.source, IdentityBackward):
        line += " --attack.source robusttrain.attacks.IdentityBackward"
    if subject.random:
        line += " --attack.gradient robusttrain.attacks.Average"
    return line
