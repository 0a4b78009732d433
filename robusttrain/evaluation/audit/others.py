"""Checks of the strongest attack against other attackers, and of its score against fresh draws."""

from __future__ import annotations

import torch

from robusttrain.attacks import FixedRandomness, IdentityBackward, Margin, Square, prepared
from robusttrain.attacks.sources.basic import Source
from robusttrain.evaluation.audit.finding import (
    ATHALYE,
    CARLINI,
    LEVEL,
    MORE_THAN_LUCK,
    PINTOR,
    TOLERATED,
    Finding,
    Needless,
    NotRun,
    beaten,
    significant,
    tail,
    words,
)
from robusttrain.evaluation.audit.subject import DRAWS, Subject
from robusttrain.models.defended import DefendedClassifier

#: Queries of the audit's own black box, per image that stands: a tenth of AutoAttack's.
QUERIES = 500
#: Random points of the ball that are tried, half of them corners.
NOISE = 100
#: Standard errors by which a recorded score may differ from a fresh one. Luck exceeds them once in
#: 370 evaluations.
SURPRISE = 3.0


def white_box_recorded(subject: Subject) -> Finding | None:
    """Whether, image by image, an attack without the target's gradient breaks what no attack with
    it breaks.
    """
    records, scenarios = subject.records, subject.engine.scenarios
    assert records is not None
    white = [name for name in scenarios if subject.follows_target(name)]
    others = [name for name in scenarios if name not in white]
    if not white or not others:
        raise Needless("the attacks are all of one kind")
    worst: tuple[float, str, int] = (0.0, "", 0)
    score = {name: records.of(name).right for name in scenarios}
    select = {name: records.of(name).chosen_by for name in scenarios}
    attacked = torch.stack([records.of(name).attacked for name in white]).all(dim=0)
    for name in others:
        # Only images that both kinds of attack were given can be compared.
        both = attacked & records.of(name).attacked
        chosen = torch.stack([select[each] for each in white]).argmin(dim=0)
        strongest = torch.stack([score[each] for each in white]).gather(0, chosen[None]).squeeze(0)
        # Images that the other attack breaks and no white box does. With ten draws, a difference
        # of half a score is no luck.
        broken = both & (strongest - score[name] >= 0.5)
        count, total = float(broken.sum()), int(both.sum())
        if total and significant(count, total) and count > worst[0]:
            worst = (count, name, total)
    count, name, total = worst
    if not count:
        return None
    return Finding(
        check="white box",
        severity="masked",
        attack=name,
        measured=(
            f"{name}, without the target's gradient, breaks {words(count)} of {total} images that"
            f" stand under {', '.join(white)}"
        ),
        threshold=MORE_THAN_LUCK,
        source=f"{ATHALYE}, section 3.1 (black box better than white box); {CARLINI}, section 5.4",
        remedy=(
            "gradients are masked: add --attack bpda-i (another source), or apgd-dlr or apgd-margin"
            " (another objective)"
        ),
        value=count / total,
    )


def black_box(subject: Subject) -> Finding | None:
    """Whether a short random search breaks what the evaluation leaves standing."""
    threat = subject.scenario.attack.threat
    subject.need_standing()
    if threat.norm not in ("linf", "l2"):
        raise NotRun(f"random search knows no norm {threat.norm}")
    square = Square(queries=QUERIES, votes=DRAWS // 2, threat=threat)
    return subject.rival(
        subject.attack(square, subject.asked, subject.standing, "square"),
        check="black box",
        severity="masked",
        measured=(
            f"{QUERIES} queries of random search break {{count}} of {{size}} images that the"
            " evaluation leaves standing"
        ),
        source=(
            f"{ATHALYE}, section 3.1 (black box better than white box); {CARLINI}, sections 4.4"
            " and 5.4"
        ),
        remedy=(
            "add --attack square; if gradient attacks stay behind it, gradients are masked: try"
            " --attack bpda-i"
        ),
    )


def other_source(subject: Subject) -> Finding | None:
    """Whether the same attack with the identity for g's derivative breaks what the evaluation
    leaves standing.
    """
    tried = any(
        isinstance(each.source, IdentityBackward) for each in subject.engine.scenarios.values()
    )
    gradients = subject.scenario.attack.cost().gradients
    subject.need_standing()
    if tried or not gradients or subject.target.defense is None:
        raise Needless("no gradient goes through a defense, or an attack had that source already")
    with prepared(subject.target):
        if not subject.target.defense.identity_fits(subject.images[:1].float()):
            raise NotRun(
                "a part of the defense changes the image's size: no identity fits in its place"
            )
    source = IdentityBackward()(subject.target)
    adversarial = subject.attack(subject.scenario.attack, source, subject.standing, "bpda")
    return subject.rival(
        adversarial,
        check="another source",
        severity="masked",
        measured=(
            "with the identity for the defense's derivative the same attack breaks {count} of"
            " {size} images more"
        ),
        source=f"{ATHALYE}, section 4.1 (BPDA); {CARLINI}, section 4.7",
        remedy="add --attack bpda-i, or automatic-differentiation where g is iterative",
    )


def source_not_target(subject: Subject) -> Finding | None:
    """Whether the attack fools the source that it differentiates, and not the target."""
    # The check fixed_randomness deals with a frozen draw that falls alone.
    if (
        subject.same_forward
        or isinstance(subject.scenario.source, FixedRandomness)
        or not len(subject.standing)
    ):
        raise Needless("the source answers as the target does, or no image stands")
    adversarial = subject.trace.returned[subject.standing]
    there = subject.judge(adversarial, subject.standing, subject.source(subject.main))
    clean = subject.judge(
        subject.images[subject.standing], subject.standing, subject.source(subject.main)
    )
    # A source that is wrong without an attack was not fooled by the attack.
    right = torch.minimum(clean, subject.ours)
    count, more = beaten(right, torch.minimum(there, right), subject.size, subject.random)
    if not more:
        return None
    return Finding(
        check="source, not target",
        severity="weak",
        attack=subject.main,
        measured=(
            f"the strongest attack fools its source on {words(count)} of {subject.size} images that"
            " the target gets right: it does not transfer"
        ),
        threshold=MORE_THAN_LUCK,
        source=f"{PINTOR}, I5 (transfer failure); {CARLINI}, section 4.5",
        remedy=(
            "attack the target itself: --attack pgd, eot where it is random, or bpda-i where it has"
            " a defense"
        ),
        value=count / subject.size,
    )


def random_noise(subject: Subject) -> Finding | None:
    """Whether random points of the ball break what the evaluation leaves standing."""
    where, threat = subject.need_standing(), subject.scenario.attack.threat
    if threat.epsilon <= 0:
        raise Needless("the radius is zero")
    images, labels, target = subject.images[where].float(), subject.labels[where], subject.asked
    best, highest = images, torch.full((len(where),), -torch.inf, device=images.device)
    with prepared(target), torch.no_grad():
        for k in range(NOISE):
            rng = subject.rng("noise", where).fold(k)
            if k % 2:
                points = threat.random_start(images, rng)
            else:  # corners of the ball, and of the box
                signs = rng.integers(images.shape[1:], 0, 2).to(images.dtype) * 2 - 1
                points = threat.project(
                    images + signs * (threat.epsilon if threat.norm == "linf" else 1e3), images
                )
            margin = Margin()(target(points, rng.fold("model")).float(), labels)
            better = margin > highest
            best = torch.where(better[:, None, None, None], points, best)
            highest = torch.where(better, margin, highest)
    # On a random model the best of many draws is luck, so other draws judge it.
    return subject.rival(
        best,
        check="random noise",
        severity="masked",
        measured=(
            f"one of {NOISE} random points of the ball breaks {{count}} of {{size}} images that the"
            " evaluation leaves standing"
        ),
        source=(
            f"{ATHALYE}, section 3.1 (random sampling finds adversarial examples); {CARLINI},"
            " section 4.11"
        ),
        remedy=(
            "start at random, restart, and look at the gradients: they lead past what chance finds"
        ),
    )


def fixed_randomness(subject: Subject) -> Finding | None:
    """Whether the attack still works with the randomness frozen, which makes its task easier."""
    scenario = subject.scenario
    if (
        not subject.random
        or isinstance(scenario.source, FixedRandomness)
        or not subject.follows_target(subject.main)
    ):
        raise Needless("no attack differentiates a target that draws")
    fixed = FixedRandomness(inner=_Same())(subject.target)
    adversarial = subject.attack(
        scenario.attack, FixedRandomness(inner=scenario.source)(subject.target), purpose="fixed"
    )
    left, clean = (
        subject.judge(images, target=fixed, draws=1) for images in (adversarial, subject.images)
    )
    # Images that are wrong on the frozen draw without an attack say nothing of the attack.
    left = left[clean > 0.5]
    if not len(left):
        raise NotRun("the frozen draw gets every image wrong without an attack")
    frozen, free = float(left.mean()), float(subject.score.mean())
    fails = tail(int(left.sum()), len(left), min(free + TOLERATED, 1.0)) < LEVEL
    return Finding(
        check="fixed randomness",
        severity="weak" if fails else "note",
        attack=subject.main,
        measured=(
            f"the attack leaves {frozen:.1%} right with one draw of the randomness frozen, and"
            f" {free:.1%} without"
        ),
        threshold=(
            f"no more with the draw frozen than without (one-sided binomial test at {LEVEL:.0%})"
        ),
        source=f"{CARLINI}, section 4.6 (attacks that fail with fixed randomness do not work)",
        remedy=("the gradient through the defense is wrong: try --attack bpda-i" if fails else ""),
        value=frozen - free,
    )


class _Same(Source):
    """The target itself, of which one draw is frozen."""

    knows = "classifier, defense"

    def __call__(self, target: DefendedClassifier) -> DefendedClassifier:
        return target


def fresh_draws(subject: Subject) -> Finding | None:
    """Whether a second run of the strongest attack, judged on unseen draws, scores as recorded."""
    records = subject.records
    assert records is not None
    attacked = records.of(subject.main).attacked[subject.places]
    difference = (subject.score - subject.recorded(subject.main))[attacked]
    if len(difference) < 2:
        raise NotRun(f"the strongest attack was given {len(difference)} of the audited images")
    total = float(difference.sum())
    spread = float(difference.std()) * len(difference) ** 0.5
    if not significant(abs(total), subject.size) or (
        subject.random and abs(total) < SURPRISE * spread
    ):
        return None
    return Finding(
        check="fresh draws",
        severity="weak",
        attack=subject.main,
        measured=(
            f"the evaluation scored {float(subject.recorded(subject.main)[attacked].mean()):.1%},"
            " and the same attack judged on fresh draws"
            f" {float(subject.score[attacked].mean()):.1%}"
        ),
        threshold=f"a difference below {SURPRISE:g} standard errors, and within luck",
        source=(
            f"{CARLINI}, section 4.6; choosing and scoring by the same draws reports luck as"
            " success"
        ),
        remedy=(
            "score with draws that no attack saw and nothing was chosen by; make the attack draw"
            " from its rng alone"
        ),
        value=total / len(difference),
    )
