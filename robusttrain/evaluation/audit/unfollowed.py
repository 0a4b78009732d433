"""The check of evaluations in which nobody followed the target's gradient."""

from __future__ import annotations

from dataclasses import replace

from torch import nn

from robusttrain.attacks import APGD, Average, Backprop, HopSkipJump, IdentityBackward, prepared
from robusttrain.evaluation.audit.finding import ATHALYE, CARLINI, PINTOR, Finding, Needless, NotRun
from robusttrain.evaluation.audit.subject import Subject
from robusttrain.evaluation.handed_on import missing

#: Steps of the audit's own white box, and draws of each on a random model.
STEPS, DRAWS = 20, 5
#: Of the audit's own search by labels: about 700 queries for an image that stands.
SEARCH = HopSkipJump(steps=5, evaluations=50)
#: The most evaluations of an image that either takes.
EVALUATIONS = 1000


def white_box_tried(subject: Subject) -> Finding | None:
    """Whether a white box, or where there is no gradient a search by labels, breaks what attackers
    leave standing none of whom followed the target's gradient.
    """
    scenarios, target = subject.engine.scenarios, subject.target
    if any(subject.follows_target(name) for name in scenarios):
        raise Needless("an attack follows the target's gradient")
    where, threat = subject.need_standing(), subject.scenario.attack.threat
    if threat.norm not in ("linf", "l2"):
        raise NotRun(f"no white box of the audit's own knows the norm {threat.norm}")
    source: nn.Module = subject.asked
    preset = "apgd-eot" if subject.random else "apgd-ce"
    if target.defense is not None and not target.defense.differentiable:
        with prepared(target):
            fits = target.defense.identity_fits(subject.images[:1].float())
        if fits:
            source, preset = IdentityBackward()(target), "bpda-eot" if subject.random else "bpda-i"
    few = subject.images.float()
    if missing(source, few, subject.indices) is None:
        gradient = Average(DRAWS) if subject.random else Backprop()
        return subject.rival(
            subject.attack(APGD(STEPS, gradient=gradient, threat=threat), source, where, "white"),
            check="white box tried",
            severity="weak",
            measured=(
                f"no attack followed the target's gradient; {STEPS} steps along it break {{count}}"
                " of {size} images that the evaluation leaves standing"
            ),
            source=f"{CARLINI}, sections 4.1 and 4.4 (a white box, also where the threat is not)",
            remedy=(
                f"add --attack {preset}, or read the figure as that of an attacker who does not"
                " know the model"
            ),
        )
    search = replace(SEARCH, threat=threat)
    result = subject.beaten_by(subject.attack(search, subject.asked, where, "labels"))
    broken = subject.finding(
        result,
        subject.size,
        check="white box tried",
        severity="weak",
        measured=(
            "the target hands on no gradient; a short search by labels alone breaks {count} of"
            " {size} images that the evaluation leaves standing"
        ),
        source=f"{ATHALYE}, section 3.1; {CARLINI}, section 4.4",
        remedy=(
            "add --attack hopskipjump, and make what hides the gradient a defense, which --attack"
            " bpda-i goes around (docs/own-defense.md)"
        ),
    )
    if broken is not None:
        return broken
    return Finding(
        check="white box tried",
        severity="weak",
        attack=subject.main,
        measured="the target hands on no gradient, and no attack goes around what hides it",
        threshold="an attack that follows a gradient of the target",
        source=f"{PINTOR}, I1 (unavailable gradients); {CARLINI}, section 4.4",
        remedy=(
            "make what hides the gradient a defense, which --attack bpda-i goes around"
            " (docs/own-defense.md)"
        ),
        value=1.0,
    )
