"""Checks that need no result of the evaluation: they run before it, and warn before hours are
spent.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from robusttrain.attacks import Loss, ask_twice, prepared
from robusttrain.evaluation.audit.changes import estimator_of, objective_of
from robusttrain.evaluation.audit.finding import (
    CARLINI,
    CROCE,
    MORE_THAN_LUCK,
    PINTOR,
    Finding,
    Needless,
    significant,
)
from robusttrain.evaluation.audit.subject import LEAST, Subject

#: Logits that differ by more than this share of the largest logit differ by more than rounding (the
#: share is that for folded batch norm).
ROUNDING = 1e-3


def sample(subject: Subject) -> Finding | None:
    """Whether there are enough images for any conclusion."""
    if subject.size >= LEAST:
        return None
    return Finding(
        check="sample",
        severity="weak",
        measured=f"only {subject.size} of the audited images are right before any attack",
        threshold=f"at least {LEAST}: with fewer, a single image is a rate of more than 10 %",
        source=f"{CARLINI}, section 4.2 (report clean accuracy)",
        remedy="evaluate more images (--images), or a model that is right more often",
        value=subject.size,
    )


def repeated_passes(subject: Subject) -> Finding | None:
    """Whether the model gives an image the same answer twice, and in any batch."""
    asked, images = subject.asked, subject.images.float()
    with prepared(asked), torch.no_grad():
        _, differ = ask_twice(asked, images, subject.rng("ask"))
        whole = asked(images, subject.rng("company"))
        again = asked(images, subject.rng("company"))
        part, half = subject.everyone[::2], subject.rng("company", subject.everyone[::2])
        company = (asked(images[part], half) - whole[part]).abs().amax(dim=1)
    random, scale = int(differ.sum()), whole.abs().amax()
    if random and not subject.target.declared_random:
        return undeclared(subject, random, bool((again == whole).all()), "images")
    together = int((company > ROUNDING * scale).sum())
    # Draws from the streams stay the same in other batches; the finding above names models that
    # draw from elsewhere.
    if together and not random:
        return Finding(
            check="repeated passes",
            severity="weak",
            measured=(
                f"the answers to {together} of {len(part)} images depend on the images beside them"
                " in the batch"
            ),
            threshold=f"differences below {ROUNDING:g} of the largest logit",
            source=(
                f"{CARLINI}, section 5.2 (basic sanity tests); batch norm in training mode is the"
                " usual cause"
            ),
            remedy=(
                "evaluate with running statistics (model.eval()); track_running_stats=False has"
                " none"
            ),
            value=together / len(part),
        )
    if subject.random and not random:
        says = subject.target.declared_random
        return Finding(
            check="repeated passes",
            severity="note",
            measured=(
                "the defense says that it is random, and answers the same in every draw"
                if says
                else "two passes differ on other images of the evaluation alone, and the model does"
                " not say that it is random"
            ),
            threshold="different answers",
            source=f"{CARLINI}, section 4.6",
            remedy="say random = False: one draw is then enough" if says else "say random = True",
        )
    return None


def undeclared(subject: Subject, count: int, given: bool, of: str) -> Finding:
    """The finding about a model that draws and does not say so.

    Args:
        subject: whose model was asked twice.
        count: images on which two passes differ.
        given: whether passes with equal streams agree.
        of: what was asked about, in words.
    """
    # Global generators can be seeded; a generator of the model's own cannot.
    given = given and not subject.asked.draws_globally
    seeded = given or subject.asked.draws_globally
    if given:
        origin = "it draws from the rng that it is given"
    elif seeded:
        origin = "it draws from a global generator, and is asked image by image, over several draws"
    else:
        origin = (
            "it has a generator of its own that no seed reaches, and another run gives other"
            " figures"
        )
    return Finding(
        check="repeated passes",
        severity="note" if seeded else "weak",
        measured=(
            f"two passes over the same {of} differ on {count} of {subject.size}, and the model does"
            f" not say that it is random: {origin}"
        ),
        threshold="equal answers, or a defense with random = True",
        source=(
            f"{CARLINI}, section 4.6; {PINTOR}, I2 (unstable predictions); {CROCE}, released code"
        ),
        remedy=(
            "say random = True"
            if given
            else "draw from the rng that forward is given (takes_rng = True) and say random = True"
        ),
        value=count / subject.size,
    )


def repeated_under_attack(subject: Subject) -> Finding | None:
    """Whether a model that repeats itself on the images does so on what the strongest attack made
    of them: one that draws only where it is unsure may not.
    """
    asked, images = subject.asked, subject.trace.returned.float()
    with prepared(asked), torch.no_grad():
        _, before = ask_twice(asked, subject.images.float(), subject.rng("ask"))
        if subject.target.declared_random or bool(before.any()):
            raise Needless("the model says that it is random, or the clean images showed it")
        _, differ = ask_twice(asked, images, subject.rng("ask"))
        whole, again = (asked(images, subject.rng("company")) for _ in range(2))
    if not (count := int(differ.sum())):
        return None
    return undeclared(subject, count, bool((again == whole).all()), "adversarial images")


def probabilities(subject: Subject) -> Finding | None:
    """Whether the model answers with probabilities where logits are expected.

    Attacks and scores take the logarithm of probabilities, so the finding is a note. Where float32
    rounds probabilities to 0 and 1, the logarithm has no gradient either: the severity is masked.
    """
    with prepared(subject.asked), torch.no_grad():
        logits = subject.asked(subject.images.float(), subject.rng("probabilities"))
    if subject.asked.answers in (None, "logits"):
        return None
    # If all probabilities but one are zero, no class is left to follow.
    lowest = math.log(torch.finfo(torch.float32).tiny)
    rounded = int(((logits > lowest + 1e-3).sum(dim=1) < 2).sum())
    stuck = significant(rounded, subject.size)
    return Finding(
        check="probabilities",
        severity="masked" if stuck else "note",
        measured=(
            "the model answers with probabilities, and attacks and scores take their logarithm for"
            " logits"
            + (
                f"; on {rounded} of {subject.size} images they are 0 and 1 exactly, and have no"
                " gradient"
                if rounded
                else ""
            )
        ),
        threshold=f"logits; {MORE_THAN_LUCK} whose probabilities are rounded away",
        source=f"{CROCE}, released code (checks of the model)",
        remedy="let the model end in logits: attacks take the softmax themselves",
        value=rounded / subject.size,
    )


def zero_gradients(subject: Subject) -> Finding | None:
    """Whether every attack that follows gradients gets exactly zero, or NaN, at the image and
    beside it; or NaN, or infinity, at some pixels, which it then leaves as they are.
    """
    still: Tensor | None = None
    left: Tensor | None = None
    names = []
    for name, scenario in subject.engine.scenarios.items():
        estimator = estimator_of(scenario.attack)
        if not scenario.attack.cost().gradients or estimator is None:
            continue
        names.append(name)
        source, objective = subject.source(name), objective_of(scenario.attack)
        stuck = torch.ones(subject.size, dtype=torch.bool, device=subject.images.device)
        unknown = torch.ones_like(subject.images, dtype=torch.bool)
        for start in range(2):
            rng = subject.rng("zero").fold(start)
            points = subject.images
            if start:  # a random point of the ball: where attacks with a random start begin
                points = scenario.attack.threat.random_start(points, rng.fold("start"))
            with prepared(source):
                goal = objective.aim(source, subject.images, subject.labels, rng.fold("aim"))
                _, gradient = estimator(Loss(source, objective, goal), points.clone(), rng)
            stuck &= ~((gradient != 0) & gradient.isfinite()).flatten(1).any(dim=1)
            unknown &= ~gradient.isfinite()
        still = stuck if still is None else still & stuck
        left = unknown if left is None else left & unknown
    if still is None or left is None:
        raise Needless("no attack follows gradients")
    count, part = int(still.sum()), int(left.flatten(1).any(dim=1).sum())
    gets = "exactly zero or NaN"
    if not significant(count, subject.size):
        if not significant(part, subject.size):
            return None
        count = part
        share = float(left.float().mean())
        gets = f"NaN or infinite at {share:.1%} of the pixels, which attacks leave as they are,"
    return Finding(
        check="zero gradients",
        severity="masked",
        measured=(
            f"{', '.join(names)}: the gradient is {gets} on {count} of {subject.size} images, at"
            " the image and at a random point beside it"
        ),
        threshold=MORE_THAN_LUCK,
        source=(
            f"{CARLINI}, section 4.7; {PINTOR}, I1 (unavailable gradients); {CROCE}, released code"
        ),
        remedy=(
            "add --attack bpda-i (for quantisation and other steps of a defense), apgd-dlr or"
            " apgd-margin (for a saturated softmax), or square (without gradients); keep roots and"
            " quotients away from 0 (for NaN)"
        ),
        value=count / subject.size,
    )
