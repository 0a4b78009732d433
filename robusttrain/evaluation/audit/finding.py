"""What a check has to say, and when a count of images is more than chance."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any, Literal

from torch import Tensor

#: "masked": gradients lead the attack astray. "weak": the attack, or its scoring, proves less than the figure says.
#: "note": worth knowing, and no fault. "not run": the check could not be made.
Severity = Literal["masked", "weak", "note", "not run"]

#: Share of images on which an attack may be beaten by luck, and be called as strong: robust accuracies are reported and
#: compared to a point or two. An attack that loses to a rival by more is not the strongest one at hand.
TOLERATED = 0.02
#: Probability of calling that luck a fault.
LEVEL = 0.05
#: What `significant` asks, in words, for findings.
MORE_THAN_LUCK = f"more images than luck allows ({TOLERATED:.0%} of them, one-sided binomial test at {LEVEL:.0%})"

CARLINI = "Carlini et al. 2019, On Evaluating Adversarial Robustness"
ATHALYE = "Athalye et al. 2018, Obfuscated Gradients"
PINTOR = "Pintor et al. 2022, Indicators of Attack Failure"
ZIMMERMANN = "Zimmermann et al. 2022, Increasing Confidence in Adversarial Robustness Evaluations"
CROCE = "Croce & Hein 2020, AutoAttack"


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
        attack: the attack that it is about; "" where it is about the model.
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
    """P(X >= count) where each of ``total`` images is one with probability ``rate``."""
    return sum(math.comb(total, k) * rate**k * (1 - rate) ** (total - k) for k in range(count, total + 1))


def significant(count: float, total: int, rate: float = TOLERATED) -> bool:
    """Whether ``count`` of ``total`` images are more than a rate of luck explains; on random models sums of shares."""
    whole = math.floor(count + 1e-6)
    return whole > 0 and tail(whole, total, rate) < LEVEL


def lost(ours: Tensor, others: Tensor) -> float:
    """By how many images ``others`` (m,) leave fewer right than ``ours`` (m,): the sum of differences of scores.

    On a deterministic model that is a count. On a random one both must be scored with the same draws, and neither
    chosen by them: then luck cancels in the sum.
    """
    return float((ours - others).sum())


def told(count: float) -> str:
    """A count, or a sum of shares, in words."""
    return f"{count:.0f}" if abs(count - round(count)) < 1e-6 else f"{count:.1f}"
