"""Checks of the strongest attack against other versions of itself."""

from __future__ import annotations

from dataclasses import replace
from typing import NoReturn

import torch

from robusttrain.attacks import CarliniWagner
from robusttrain.attacks.parts.threats import inside
from robusttrain.evaluation.audit.changes import single_step
from robusttrain.evaluation.audit.finding import (
    ATHALYE,
    CARLINI,
    LEVEL,
    PINTOR,
    Finding,
    Needless,
    NotRun,
    beaten,
    significant,
    tail,
    words,
)
from robusttrain.evaluation.audit.subject import DRAWS, Subject

#: Radius at which a uniform grey image, the same for all classes, is inside every ball of Linf.
GREY = 0.5
#: Share of its whole rise that the loss gains from the fourth to the last fifth of the steps. In a
#: straight line it is one fifth of the steps over nine tenths of them. An attack that is still as
#: fast has not begun to converge. A slower rise matters only if more steps break more images, which
#: another check finds out.
STILL_RISING = 0.22
#: Share of a loss that float32 may lose in a pass: some units in the last place.
ROUNDING = 16 * torch.finfo(torch.float32).eps


def epsilon_zero(subject: Subject) -> Finding | None:
    """Whether the attack within a radius of zero returns the image, and scores like no attack."""
    attack = subject.scenario.attack
    attack = (attack.scaled(0) or attack).at_radius(0.0)
    returned = subject.attack(attack, subject.source(subject.main), purpose="epsilon 0")
    moved = float((returned - subject.images).abs().max())
    clean, score = subject.recorded("clean"), subject.judge(returned)
    fresh = subject.judge(subject.images)
    flips = float((score - fresh).abs().sum())
    shifted = abs(float((clean - fresh).sum()))
    if (
        moved <= 1e-6
        and not significant(flips, subject.size)
        and not significant(shifted, subject.size)
    ):
        return None
    return Finding(
        check="epsilon 0",
        severity="weak",
        attack=subject.main,
        measured=(
            f"within epsilon 0 pixels move by up to {moved:.3g}, {words(flips)} of {subject.size}"
            f" verdicts differ from those without an attack, and {words(shifted)} clean verdicts"
            " from the recorded ones"
        ),
        threshold="pixels stay within 1e-6, and verdicts are those without an attack",
        source=f"{CARLINI}, section 5.2 (basic sanity tests)",
        remedy="hand epsilon on to every part of the attack; put the model into evaluation mode",
        value=moved,
    )


def epsilon_half(subject: Subject) -> Finding | None:
    """Whether a radius that holds a grey image brings accuracy to chance."""
    threat = subject.scenario.attack.threat
    wide = GREY * (subject.images[0].numel() ** 0.5 if threat.norm == "l2" else 1)
    left = subject.ours
    if threat.epsilon < wide and len(subject.standing):
        attack = subject.scenario.attack.at_radius(wide)
        grey = torch.full_like(subject.images, GREY)
        if not inside(attack.threat, grey, subject.images, 1e-4).all():
            raise Needless("the ball keeps out more than its radius does, a grey image too")
        adversarial = subject.attack(attack, subject.source(subject.main), subject.standing, "wide")
        left = subject.judge(adversarial, subject.standing)
    classes = subject.classes
    right = float(left.sum())
    # Guessing gets one in K right, also of images that were right before any attack.
    if tail(int(right + 1e-6), subject.size, 1 / classes) >= LEVEL:
        return None
    return Finding(
        check="epsilon 0.5",
        severity="weak",
        attack=subject.main,
        measured=(
            f"within {threat.norm} {wide:.3g} the attack leaves {words(right)} of {subject.size}"
            " images right, where a uniform grey image is allowed"
        ),
        threshold=f"chance, 1 in {classes} (one-sided binomial test at {LEVEL:.0%})",
        source=(
            f"{ATHALYE}, section 3.1; {CARLINI}, section 5.2; {PINTOR}, I6 (unconstrained attack"
            " failure)"
        ),
        remedy=(
            "the attack does not attack: look at step size, projection and sign of the loss, and at"
            " zero gradients"
        ),
        value=right / subject.size,
    )


def monotone(subject: Subject) -> Finding | None:
    """Whether the attack breaks images within half the radius that stand within the whole."""
    subject.need_standing()
    if subject.scenario.attack.threat.epsilon <= 0:
        raise Needless("the radius is zero")
    attack = subject.scenario.attack
    attack = attack.at_radius(attack.threat.epsilon / 2)
    adversarial = subject.attack(attack, subject.source(subject.main), subject.standing, "half")
    return subject.rival(
        adversarial,
        check="monotone in epsilon",
        severity="weak",
        measured=(
            "half the radius breaks {count} of {size} images that the whole radius leaves standing"
        ),
        source=(
            f"{ATHALYE}, section 3.1 (a larger bound does not increase success); {CARLINI},"
            " section 5.2"
        ),
        remedy=(
            "keep the best iterate (--attack apgd-ce), take smaller steps (--attack.step_size), or"
            " more of them (--attack.steps)"
        ),
    )


def one_step(subject: Subject) -> Finding | None:
    """Whether a single step of length epsilon breaks images that all steps together do not."""
    scenario = subject.scenario
    subject.need_standing()
    if not scenario.attack.cost().gradients:
        raise Needless("the strongest attack follows no gradient")
    adversarial = subject.attack(
        single_step(scenario.attack), subject.source(subject.main), subject.standing, "one step"
    )
    return subject.rival(
        adversarial,
        check="single step",
        severity="weak",
        measured=(
            "one step of epsilon breaks {count} of {size} images that the attack leaves standing"
        ),
        source=f"{ATHALYE}, section 3.1 (one step better than many); {CARLINI}, section 5.2",
        remedy=(
            "the steps do not add up: look at the step size, the sign of the loss and the update"
            " rule"
        ),
    )


def twice_the_steps(subject: Subject) -> Finding | None:
    """Whether twice the steps from another start break more images."""
    attack = subject.scenario.attack.scaled(2)
    subject.need_standing()
    if attack is None:
        raise NotRun("the attack has neither steps nor queries that can be doubled")
    adversarial = subject.attack(
        attack, subject.source(subject.main), subject.standing, "twice the steps"
    )
    return subject.rival(
        adversarial,
        check="twice the steps",
        severity="weak",
        measured=(
            "twice the steps (at least 10), with other random numbers, break {count} of {size}"
            " images more"
        ),
        source=f"{CARLINI}, section 4.8 (verify attack convergence)",
        remedy=(
            "give the attack more steps (--attack.steps), a larger step (--attack.step_size) or"
            " restarts (--attack pgd-restarts), until this changes nothing"
        ),
        within_luck=True,
    )


def twice_the_draws(subject: Subject) -> Finding | None:
    """Whether twice the draws of a random model's randomness break more images."""
    subject.need_standing()
    if not subject.random:
        raise Needless("the target draws nothing")
    before = subject.scenario.attack.draws_seen
    attack = subject.scenario.attack.with_draws(DRAWS)
    if attack is None:
        raise NotRun("the attack has neither an average nor votes that can be doubled")
    adversarial = subject.attack(
        attack, subject.source(subject.main), subject.standing, "twice the draws"
    )
    remedy = (
        "average over more draws (--attack eot --attack.gradient.draws 60; of random search"
        " --attack.votes), until this changes nothing"
    )
    found = subject.rival(
        adversarial,
        check="twice the draws",
        severity="weak",
        measured=(
            f"decisions over {attack.draws_seen} draws instead of {before} break {{count}} of "
            "{size} images more"
        ),
        source=f"{ATHALYE}, section 4.2 (EOT); {CARLINI}, section 4.6",
        remedy=remedy,
        within_luck=True,
    )
    # Few images hide a few points, and an attack that never averaged has an obvious rival.
    alone = found is not None and found.severity == "note" and before == 1
    return replace(found, remedy=remedy) if found is not None and alone else found


def silent_success(subject: Subject) -> Finding | None:
    """Whether an earlier iterate was adversarial although the returned image is not."""
    trace, where = subject.trace, subject.standing_by_return
    if not len(where):
        subject.need_standing()
    if not trace.points:
        _refuse_unwatched(subject)
    threat = subject.scenario.attack.threat
    best = subject.trace.returned[where]
    ours = subject.score[where.cpu()]
    lowest = ours.clone()
    for points in trace.points:
        candidates = points[where].to(best.dtype)
        held = inside(threat, candidates, subject.images[where], 1e-6).cpu()
        score = subject.judge(candidates.clamp(0, 1), where, purpose="choose")
        better = (score < lowest) & held
        best = torch.where(better.to(best.device)[:, None, None, None], candidates, best)
        lowest = torch.where(better, score, lowest)
    # The iterate was chosen on some draws, and is judged on others.
    return subject.finding(
        beaten(ours, subject.judge(best, where), subject.size, subject.random),
        subject.size,
        check="silent success",
        severity="weak",
        measured=(
            "on {count} of {size} images an earlier iterate fooled the model and what was returned"
            " does not"
        ),
        source=f"{PINTOR}, I3 (silent success)",
        remedy=(
            "return the best iterate (--attack apgd-ce does), or stop at the first adversarial one"
            " if the model is not random"
        ),
    )


def still_rising(subject: Subject) -> Finding | None:
    """Whether the loss on images that stand still rises at the end."""
    where = subject.need_standing().cpu()
    if isinstance(subject.scenario.attack, CarliniWagner):
        raise NotRun("the loss of this attack falls with the distance, too")
    if not subject.trace.losses:
        _refuse_unwatched(subject)
    losses = torch.stack(subject.trace.losses)[:, where].nan_to_num().mean(dim=1)
    if len(losses) < 3:
        raise NotRun(f"a course of {len(losses)} points has no last fifth")
    fifth = max(1, len(losses) // 5)
    last, before = losses[-fifth:].mean(), losses[-2 * fifth : -fifth].mean()
    whole = float(last - losses[0])
    # Losses of any size: what their own rounding explains is no course.
    if float(losses.max() - losses.min()) <= ROUNDING * float(losses.abs().max()):
        raise NotRun("the loss moved by no more than its rounding")
    gained = float(last - before) / whole if whole > 0 else 0.0
    if gained < STILL_RISING:
        return None
    return Finding(
        check="loss still rising",
        severity="weak",
        attack=subject.main,
        measured=(
            f"on the images that stand, the last fifth of the steps gained {gained:.0%} of the"
            " loss's whole rise"
        ),
        threshold=f"below {STILL_RISING:.0%}, the gain of a straight line",
        source=f"{CARLINI}, section 4.8; {PINTOR}, I4 (incomplete optimization)",
        remedy="give the attack more steps (--attack.steps), or larger ones (--attack.step_size)",
        value=gained,
    )


def _refuse_unwatched(subject: Subject) -> NoReturn:
    if not subject.scenario.attack.cost().gradients:
        raise Needless("an attack that only asks has no gradients to watch")
    raise NotRun("the attack has no estimator that can be watched")
