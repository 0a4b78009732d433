"""Checks of the gradient that the strongest attack follows: repeated, against finite differences,
and against random directions.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from robusttrain.attacks import GradientEstimator, Linf, Loss, Margin, Normalized, prepared
from robusttrain.attacks.parts.updates import STEEPEST
from robusttrain.evaluation.audit.changes import estimator_of
from robusttrain.evaluation.audit.finding import (
    ATHALYE,
    CARLINI,
    PINTOR,
    Finding,
    Needless,
    NotRun,
    words,
)
from robusttrain.evaluation.audit.subject import DRAWS, LEAST, Subject
from robusttrain.evaluation.scoring import median

#: The cosine of two estimates is the share of an estimate's squared length that is signal. Below a
#: fifth, half of the average's squared length is signal only after more than four estimates.
SIGNAL = 0.2
#: Step of the differences, in pixel values: far below a grey level, far above float32's rounding.
STEP = 1e-3
#: Rises that are smaller than this share of the loss are rounding.
RESOLUTION = 1e-5
#: Factor by which a derivative and a finite difference may disagree on half of the images.
FACTOR = 2.0
#: Random directions that the gradient is compared with.
DIRECTIONS = 10
#: Share of images on which the gradient may be no better than half of the random directions. A
#: useless gradient is no better on half of the images.
NO_BETTER = 0.25


def two_estimates(subject: Subject) -> Finding | None:
    """Cosine of two independent estimates of a random model's gradient."""
    estimator = _estimator(subject)
    if not subject.random:
        raise Needless("the target draws nothing")
    first, second = (_gradient(subject, estimator, k) for k in range(2))
    cosine = float(cosines(first, second).nanmean())
    if math.isnan(cosine):
        raise NotRun("both estimates of every gradient are NaN")
    if cosine >= SIGNAL:
        return None
    return Finding(
        check="two estimates",
        severity="weak",
        attack=subject.main,
        measured=(
            f"two independent estimates of the gradient have a mean cosine of {cosine:.2f}: most of"
            " it is noise"
        ),
        threshold=f"at least {SIGNAL:g}: a fifth of an estimate is signal",
        source=f"{ATHALYE}, section 4.2 (EOT); {CARLINI}, section 4.6",
        remedy=(
            "average over more draws (--attack eot, bpda-eot), or accumulate over steps (--attack"
            " mifgsm, bpda-i-momentum)"
        ),
        value=cosine,
    )


def finite_differences(subject: Subject) -> Finding | None:
    """Whether the derivative that automatic differentiation gives is that of the function."""
    estimator = _estimator(subject)
    if not subject.exact:
        raise Needless("a surrogate's derivative need not be the target's")
    # In float32 throughout: attacks may run in another precision.
    source = subject.scenario.source(subject.target)
    with prepared(source):
        loss_fn = subject.loss(source)
        rng = subject.rng("differences")
        _, gradient = estimator(loss_fn, subject.images.clone(), rng[:])
        direction = gradient.sign()
        expected = (gradient * direction).flatten(1).sum(dim=1)
        estimates = [
            estimator(loss_fn, subject.images + sign * STEP * direction, rng[:])[0].double()
            for sign in (1, -1)
        ]
    measured = (estimates[0] - estimates[1]) / (2 * STEP)
    # A margin may be near zero by chance, where the logits and their rounding are not.
    size = estimates[0].abs()
    scale = size.clamp_min(size.nanmean())
    clear = (torch.maximum(expected.abs().double(), measured.abs()) * STEP > RESOLUTION * scale) & (
        expected > 0
    )
    if int(clear.sum()) < LEAST:
        raise NotRun(
            f"along the gradient the loss changes by more than its rounding on {int(clear.sum())}"
            f" of {subject.size} images only"
        )
    ratio = median(measured[clear] / expected[clear].double())
    if 1 / FACTOR <= ratio <= FACTOR:
        return None
    return Finding(
        check="finite differences",
        severity="masked",
        attack=subject.main,
        measured=(
            f"along the gradient the loss rises {ratio:.2g} times as fast as the gradient says"
            f" (median of {int(clear.sum())} images)"
        ),
        threshold=f"between 1/{FACTOR:g} and {FACTOR:g}",
        source=f"{ATHALYE}, section 3 (shattered gradients); {CARLINI}, section 4.7",
        remedy=(
            "something between image and loss is detached or jumps: add --attack bpda-i, or square"
        ),
        value=ratio,
    )


def better_than_chance(subject: Subject) -> Finding | None:
    """Whether a step along the gradient raises the target's margin more than a step in a random
    direction.
    """
    estimator = _estimator(subject)
    threat = subject.scenario.attack.threat
    if threat.epsilon <= 0 or not subject.follows_target(subject.main):
        raise Needless("the strongest attack does not differentiate the target within a radius")
    gradient = _gradient(subject, estimator, 0)
    quarter = threat.epsilon / 4
    rise = _margin(subject, _step(subject, gradient, quarter))
    rivals = []
    for k in range(DIRECTIONS):
        rng = subject.rng("directions").fold(k)
        shape = subject.images.shape[1:]
        draw = (
            rng.integers(shape, 0, 2).float() * 2 - 1
            if isinstance(threat, Linf)
            else rng.normal(shape)
        )
        rivals.append(_margin(subject, _step(subject, draw, quarter)))
    worse = rise <= torch.stack(rivals).median(dim=0).values
    count = int(worse.sum())
    if count <= NO_BETTER * subject.size:
        return None
    return Finding(
        check="gradient agreement",
        severity="masked",
        attack=subject.main,
        measured=(
            f"on {words(count)} of {subject.size} images a step along the gradient changes the"
            " margin no more than random directions do"
        ),
        threshold=f"at most {NO_BETTER:.0%}, half of what a useless gradient gets",
        source=f"{ATHALYE}, section 3 (shattered gradients); {PINTOR}, I1 (unavailable gradients)",
        remedy=(
            "the gradient says nothing about the model: look for detached, discontinuous or"
            " saturated steps; add --attack bpda-i, nrigsm (smoothed), finite-differences or square"
        ),
        value=count / subject.size,
    )


def cosines(first: Tensor, second: Tensor) -> Tensor:
    """(n,) cosines of gradients (n, C, H, W), at any length; 0 where one of them is zero.

    Lengths are divided out before anything is squared: logits times 1e-9 have gradients whose
    squares are lost in float32 (`torch.cosine_similarity` gives 0 for lengths below 1e-8).
    """
    unit, _ = Normalized().step(first, None)
    other, _ = Normalized().step(second, None)
    cosine = (unit * other).flatten(1).sum(dim=1)
    finite = (first.isfinite() & second.isfinite()).flatten(1).all(dim=1)
    return cosine.where(finite, torch.nan)


def _estimator(subject: Subject) -> GradientEstimator:
    attack = subject.scenario.attack
    estimator = estimator_of(attack) if attack.cost().gradients else None
    if estimator is None:
        raise Needless("the strongest attack follows no gradient")
    return estimator


def _gradient(subject: Subject, estimator: GradientEstimator, number: int) -> Tensor:
    """(n, C, H, W): the attack's own estimate on its own source, number ``number``."""
    source = subject.source(subject.main)
    with prepared(source):
        loss_fn: Loss = subject.loss(source)
        return estimator(loss_fn, subject.images.clone(), subject.rng("estimate").fold(number))[1]


def _step(subject: Subject, direction: Tensor, length: float) -> Tensor:
    """(n, C, H, W): a step of this length, in the threat's norm, along a direction; inside the
    box.
    """
    step, _ = STEEPEST[subject.scenario.attack.threat.norm].step(direction, None)
    return (subject.images + length * step).clamp(0, 1)


def _margin(subject: Subject, points: Tensor) -> Tensor:
    """(n,) the target's mean margin at points (n, C, H, W), with the same draws for all points."""
    draws = DRAWS if subject.random else 1
    with prepared(subject.asked), torch.no_grad():
        loss = Loss(subject.asked, Margin(), subject.labels)
        drawn = [loss(points.float(), subject.rng("margin").fold(draw)) for draw in range(draws)]
    return torch.stack(drawn).mean(dim=0)
