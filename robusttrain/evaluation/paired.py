"""Accuracies of the same images, compared image by image.

Two accuracies of the same images are not independent: what one model gets wrong, the other one
mostly does, too. Comparing their intervals hides most differences that are there, so each image is
compared with itself.

Two models that always answer the same: McNemar's exact test (McNemar 1947), which asks of the
images on which they disagree whether one of them wins more often than a coin does; and the interval
of the difference after Agresti & Min 2005 (half an image is added to each cell of the table of
both verdicts). Where a model is random, an image has a share of draws instead of a verdict: the
normal distribution of the mean of the differences over images gives both. It knows nothing of how
few images differ: so the interval holds that of Agresti & Min besides, each difference counted as a
part of a verdict; and p is never below that of a coin that fell on one side for every image that
differs, the least that changing signs at random can give.

Interval and p are of different tests, and of few images the interval may be the bolder one: it is
widened to 0 wherever p is 0.05 or more. The other way round both stand side by side: a random model
may have a p below 0.05 whose interval holds 0.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from scipy.stats import binomtest, norm
from torch import Tensor

from robusttrain.evaluation.report import Figure

#: Quantile of the normal distribution, two-sided 95 %.
Z = 1.959964
#: p from which on chance explains a difference: the other side of 95 %.
SIGNIFICANT = 0.05
McNEMAR = "McNemar's exact test; interval after Agresti & Min 2005"
NORMAL = "normal distribution of the differences over images, as a model is random"
_ALIKE = 1e-9  # standard errors up to this are rounding


@dataclass(frozen=True)
class Difference:
    """How one row of two evaluations differs, later minus earlier.

    Args:
        row: an attack, `CLEAN` or `WORST`.
        before: accuracy of the first evaluation.
        after: of the other one.
        mean: their difference, in [-1, 1].
        low: of its 95 % interval; NaN where nothing can be said.
        high: of it.
        lost: images that are right in the first evaluation more often than in the other.
        won: the other way round.
        p: probability of such a difference by chance alone; NaN where nothing can be said.
        how: by which test.
    """

    row: str
    before: Figure
    after: Figure
    mean: float
    low: float
    high: float
    lost: int
    won: int
    p: float
    how: str

    @property
    def points(self) -> str:
        """As `in_points` has it."""
        return in_points(self.mean, self.low, self.high)

    @property
    def unsure(self) -> bool:
        """Whether the interval holds 0 although p is below 0.05."""
        return self.p < SIGNIFICANT and self.low <= 0 <= self.high

    @property
    def reversed(self) -> Difference:
        """The same, earlier minus later."""
        return replace(
            self,
            before=self.after,
            after=self.before,
            mean=-self.mean,
            low=-self.high,
            high=-self.low,
            lost=self.won,
            won=self.lost,
        )

    @property
    def chance(self) -> str:
        """p as it is read."""
        if math.isnan(self.p):
            return "-"
        return "< 0.0001" if self.p < 1e-4 else f"= {self.p:.4f}"


def in_points(mean: float, low: float | None, high: float | None, form: str = "+.1f") -> str:
    """ "-3.5 points (-5.1 to -1.9)": a difference of accuracies, with its interval if there is one.

    Args:
        mean: in [-1, 1].
        low, high: of the interval; NaN or None for none.
        form: of each number.
    """
    points = f"{100 * mean:{form}} points"
    if low is None or high is None or math.isnan(low):
        return points
    ends = (100 * low + 0.0, 100 * high + 0.0)  # no "-0.0"
    return f"{points} ({ends[0]:{form}} to {ends[1]:{form}})"


def compared(
    before: Tensor, after: Tensor, row: str, random: bool, agreeing: bool = True
) -> Difference:
    """Two evaluations of the same images.

    Args:
        before, after: (n,) shares of draws that are right, 0 or 1 for a deterministic model.
        row: what is compared.
        random: whether one of the models is random.
        agreeing: whether the interval holds 0 wherever p says that chance explains the difference;
            results of earlier versions have it without.
    """
    count, change = len(before), after.double() - before.double()
    lost, won = int((change < 0).sum()), int((change > 0).sum())
    mean = float(change.mean())
    if random:
        low, high = around(change)
        p = _chance_of(change, min(1.0, 2.0 ** (1 - lost - won)))
    else:
        low, high = agresti_min(lost, won, count)
        p = float(binomtest(won, lost + won).pvalue) if lost + won else 1.0
    if agreeing and p >= SIGNIFICANT:
        low, high = min(low, 0.0), max(high, 0.0)
    figures = Figure.over(before), Figure.over(after)
    how = NORMAL if random else McNEMAR
    return Difference(row, *figures, mean, low, high, lost, won, p, how)


def around(change: Tensor) -> tuple[float, float]:
    """The 95 % interval of the mean of changes (n,) in [-1, 1], by the normal approximation and
    after Agresti & Min, whatever is wider on either side; NaN of one image.

    Where all changes are the same, nothing shows how much they vary, and the first would have no
    width: then that of `agresti_min`, as if each were a whole verdict.
    """
    count, mean = len(change), float(change.double().mean())
    if count < 2:
        return math.nan, math.nan
    error = float(change.double().std()) / math.sqrt(count)
    if error < _ALIKE:
        low, high = agresti_min(int((change < 0).sum()), int((change > 0).sum()), count)
        return min(low, mean), max(high, mean)
    few = _agresti_min(float(change.sum()), float(change.double().square().sum()), count)
    return min(few[0], max(-1.0, mean - Z * error)), max(few[1], min(1.0, mean + Z * error))


def _chance_of(change: Tensor, least: float) -> float:
    """p of the mean of changes (n,), by the normal distribution, and no less than ``least``; NaN of
    one image that changed.
    """
    count, mean = len(change), float(change.mean())
    if not mean:
        return 1.0
    if count < 2:
        return math.nan
    error = float(change.std()) / math.sqrt(count)
    return max(2 * float(norm.sf(abs(mean) / error)), least) if error > _ALIKE else least


def agresti_min(lost: int, won: int, count: int) -> tuple[float, float]:
    """The 95 % interval of (won - lost) / count, of images that were judged twice."""
    return _agresti_min(won - lost, won + lost, count)


def _agresti_min(more: float, disagree: float, count: int) -> tuple[float, float]:
    """`agresti_min` of the sum of differences and the sum of their squares."""
    whole = count + 2
    mean = more / whole
    half = Z * math.sqrt(disagree + 1 - more * more / whole) / whole
    return max(-1.0, mean - half), min(1.0, mean + half)
