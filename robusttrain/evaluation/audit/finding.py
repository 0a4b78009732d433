"""What a check reports, and when a count of images is more than chance."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any, Literal, NamedTuple

import torch
from scipy.stats import binom
from torch import Tensor

#: "masked": gradients lead the attack astray. "weak": the attack, or its scoring, proves less than
#: the figure claims. "note": worth knowing, but no fault. "not run": the check was impossible.
Severity = Literal["masked", "weak", "note", "not run"]

#: Share of images on which a rival may beat an attack by luck. Robust accuracies are reported and
#: compared to a point or two. An attack that loses by more is not the strongest one at hand.
TOLERATED = 0.02
#: Probability of taking luck for a fault.
LEVEL = 0.05
#: Quantile of the normal distribution at that level, one-sided.
NORMAL = 1.645
#: The question of `significant`, in words, for findings.
MORE_THAN_LUCK = (
    f"more images than luck allows ({TOLERATED:.0%} of them, one-sided test at {LEVEL:.0%})"
)

CARLINI = "Carlini et al. 2019, On Evaluating Adversarial Robustness"
ATHALYE = "Athalye et al. 2018, Obfuscated Gradients"
PINTOR = "Pintor et al. 2022, Indicators of Attack Failure"
ZIMMERMANN = "Zimmermann et al. 2022, Increasing Confidence in Adversarial Robustness Evaluations"
TASHIRO = "Tashiro et al. 2020, Output Diversification"
CROCE = "Croce & Hein 2020, AutoAttack"


class NotRun(Exception):  # noqa: N818 - no error: the audit lists the check as not run
    """A check could not be made; the message says why, in words."""


class Needless(Exception):  # noqa: N818 - no error: the audit leaves the check out
    """There is nothing that a check could ask about: no image stands, the model draws nothing, no
    attack follows gradients. It counts neither as passed nor as not run.
    """


@dataclass(frozen=True)
class Finding:
    """One line of the audit.

    Args:
        check: name of the check.
        severity: how much it matters.
        measured: what was measured, in words.
        threshold: what would have been fine.
        source: paper and section.
        remedy: what to do.
        attack: the attack that the finding is about; "" where it is about the model.
        value: the number behind ``measured``, if there is one.
    """

    check: str
    severity: Severity
    measured: str
    threshold: str = ""
    source: str = ""
    remedy: str = ""
    attack: str = ""
    value: float | None = None

    def as_dict(self) -> dict[str, Any]:
        """Plain JSON."""
        return asdict(self)


def tail(count: int, total: int, rate: float) -> float:
    """P(X >= count) for X of ``total`` images, each with probability ``rate``."""
    return float(binom.sf(count - 1, total, rate))


def significant(count: float, total: int, rate: float = TOLERATED) -> bool:
    """Whether ``count`` of ``total`` images are more than luck at this rate explains."""
    whole = math.floor(count + 1e-6)
    return whole > 0 and tail(whole, total, rate) < LEVEL


class Beaten(NamedTuple):
    """What a rival breaks of the images that the evaluation leaves standing.

    Args:
        images: how many images; on a random model the sum of the differences of their scores.
        more: whether that number is more than luck allows.
    """

    images: float
    more: bool


def beaten(ours: Tensor, others: Tensor, total: int, random: bool) -> Beaten:
    """Compare scores of the same images.

    Args:
        ours: (m,) scores under the evaluation's attack.
        others: (m,) scores under the rival, on the same draws; neither image may be chosen by
            these draws.
        total: images of the sample, fallen ones included.
        random: whether scores are shares of draws. Luck is then a matter of their spread, and a
            one-sided test replaces the binomial one: the mean difference must exceed `TOLERATED`
            by `NORMAL` standard errors.
    """
    difference = ours - others
    count = float(difference.sum())
    if not random:
        return Beaten(count, significant(count, total))
    everyone = torch.zeros(total, dtype=torch.float64)
    everyone[: len(difference)] = difference
    error = float(everyone.std()) / math.sqrt(total) if total > 1 else math.inf
    return Beaten(count, count >= 1 and count / total - TOLERATED > NORMAL * error)


def words(count: float) -> str:
    """A count, or a sum of shares, in words."""
    return f"{count:.0f}" if abs(count - round(count)) < 1e-6 else f"{count:.1f}"
