"""Objectives: what the attacker maximises, one number per image.

``objective(logits, goal)`` is never reduced over the batch and always maximised. ``goal`` is what
``aim`` returned before the first step: the true labels for an untargeted objective, the target
classes for a targeted one. Symbols: z logits, y true class, t target class.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from robusttrain.attacks.asking import call_model
from robusttrain.core.checked import Positive, checked
from robusttrain.core.errors import UserError, one_of
from robusttrain.core.rng import Rng

TargetChoice = Literal["least_likely", "second", "random"]

#: Log-odds against the true class below which few digits of 1 - p_y are left in float32; and below
#: which cross entropy goes on as its tangent, so that its derivative does not vanish.
SURE, SURER = -12.0, -40.0


class Objective(ABC):
    """From logits (B, K) and goal (B, ...) to (B,)."""

    #: Whether ``aim`` asks the model once before the first step.
    asks: bool = False
    #: Which class a targeted objective strives for; None for an untargeted one.
    target: TargetChoice | None = None
    #: The fewest classes for which the objective makes sense.
    least_classes = 2

    def aim(self, model: nn.Module, images: Tensor, labels: Tensor, rng: Rng) -> Tensor:
        """The goal (B, ...), decided on the clean images; by default the labels (B,)."""
        return labels

    def toward(self, labels: Tensor, targets: Tensor) -> Tensor:
        """The goal (B, ...) of a targeted objective for given true classes and target classes, both
        (B,).
        """
        return targets

    @abstractmethod
    def __call__(self, logits: Tensor, goal: Tensor) -> Tensor: ...


def _ask(model: nn.Module, images: Tensor, rng: Rng) -> Tensor:
    """The model's logits (B, K) on the clean images."""
    with torch.no_grad():
        return call_model(model, images, rng)


def _others(logits: Tensor, labels: Tensor) -> Tensor:
    """(B,): the largest logit among the wrong classes."""
    return logits.scatter(1, labels[:, None], -torch.inf).amax(dim=1)


def _of(logits: Tensor, labels: Tensor) -> Tensor:
    """(B,): the logit of each image's class."""
    return logits.gather(1, labels[:, None]).squeeze(1)


def _wrong(logits: Tensor, labels: Tensor) -> Tensor:
    """(B,): log sum_{i != y} exp z_i. Where all of these are -inf, it is about the least number,
    since the derivative would be none.
    """
    others = logits.scatter(1, labels[:, None], -torch.inf)
    return others.clamp_min(torch.finfo(logits.dtype).min).logsumexp(dim=1)


def _cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """(B,): -log softmax(z)_y, with a derivative that keeps its direction however sure the model
    is.

    As torch computes it, the derivative with respect to z_y is p_y - 1: that is rounded where p_y
    is nearly 1, then zero while those of the other logits are not, and where the logits are far
    apart all are zero. Attacks then follow a wrong direction, or none, and a model looks robust
    because its logits are large (Carlini & Wagner 2016, "Defensive distillation is not robust to
    adversarial examples"; Croce & Hein 2020, section 4, who take another loss for that). Written as
    softplus(o) with o the log-odds against y, nothing cancels. Below o = -40 the tangent of
    softplus there goes on: the derivative of o is what counts, since only an average over several
    answers weighs its length, and there e^-40 is nothing beside an answer that is less sure.
    """
    precise, sure = _sure(logits, labels)
    # Anywhere else the two agree up to rounding, and the plain one is what the peers take.
    return torch.where(sure, precise, F.cross_entropy(logits, labels, reduction="none"))


def _sure(logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """(B,), (B,): `_cross_entropy` as the softplus of the log-odds, and where it is to be taken."""
    odds = _wrong(logits, labels) - _of(logits, labels)
    low = odds.clamp_min(SURER)
    precise = F.softplus(low) + math.exp(SURER) * (odds - low)
    # Where no other class is possible, there is nowhere to go.
    return precise, (odds < SURE) & (odds > torch.finfo(odds.dtype).min / 2)


def repeated(goal: Tensor, copies: int) -> Tensor:
    """The goal (copies * B, ...) of stacked copies of a batch, copy after copy."""
    return goal.repeat(copies, *[1] * (goal.dim() - 1))


def need_classes(objective: Objective, classes: int) -> None:
    """Raise UserError unless an objective makes sense for so many classes."""
    if classes < objective.least_classes:
        name = type(objective).__name__
        instead = "Margin" if objective.target is None else "TargetedMargin"
        raise UserError(
            f"objective {name} needs at least {objective.least_classes} classes, the model has"
            f" {classes}; {instead} needs two"
        )


@dataclass(frozen=True)
class CrossEntropy(Objective):
    """-log softmax(z)_y: away from the true class, whose derivative keeps its direction however
    sure the model is.
    """

    def __call__(self, logits: Tensor, goal: Tensor) -> Tensor:
        return _cross_entropy(logits, goal)


@dataclass(frozen=True)
class WrongProbability(Objective):
    """log(1 - p_y), the log of the probability of all wrong classes together (Liu et al. 2017 [P5],
    equation 3).

    The paper minimises -log(1 - p_y). Here the value is computed from logits: where p_y rounds to
    1, 1 - p_y would have no gradient.
    """

    def __call__(self, logits: Tensor, goal: Tensor) -> Tensor:
        return _wrong(logits, goal) - logits.logsumexp(dim=1)


@dataclass(frozen=True)
class Margin(Objective):
    """max_{i != y} z_i - z_y: positive exactly where the image is misclassified (Carlini & Wagner
    2017).
    """

    def __call__(self, logits: Tensor, goal: Tensor) -> Tensor:
        return _others(logits, goal) - _of(logits, goal)


@checked
@dataclass(frozen=True)
class SoftMargin(Objective):
    """T log sum_{i != y} exp(z_i / T) - z_y, the margin with a soft maximum: it heeds every wrong
    class that is about as near as the nearest.

    T = temperature std_{i != y} z_i, held constant in the gradient, whose direction is so blind to
    the scale and shift of logits, as the margin's is. With T = 1 the direction would be that of
    cross entropy; as the temperature falls, or of two classes, it is the margin's. The value is the
    margin, or more by up to T log(K - 1).

    Args:
        temperature: in standard deviations of the wrong classes' logits, above 0.
    """

    temperature: Positive = 0.5

    def __call__(self, logits: Tensor, goal: Tensor) -> Tensor:
        classes = logits.shape[1]
        after = torch.arange(1, classes, device=logits.device)
        wrong = logits.gather(1, (goal[:, None] + after) % classes)
        # Logits of -inf, classes that are ruled out, have no deviation: the margin then.
        spread = wrong.detach().std(dim=1, correction=0).nan_to_num(0.0, 0.0)
        t = (self.temperature * spread).clamp_min(torch.finfo(logits.dtype).tiny)
        top = wrong.amax(dim=1).detach()
        soft = top + t * ((wrong - top[:, None]) / t[:, None]).logsumexp(dim=1)
        return soft - _of(logits, goal)


@dataclass(frozen=True)
class LogOdds(Objective):
    """log sum_{i != y} exp z_i - z_y, the log-odds against the true class.

    Cross entropy is its softplus, so the gradients of both have one direction. That of cross
    entropy becomes shorter the surer the model is; this one has a length at any scale of logits.
    """

    def __call__(self, logits: Tensor, goal: Tensor) -> Tensor:
        return _wrong(logits, goal) - _of(logits, goal)


@dataclass(frozen=True)
class Judged(Objective):
    """The margin by value, another objective by gradient: one pass tells success and direction.

    Args:
        objective: that is climbed; of the same goal as `Margin`, the labels.
    """

    objective: Objective

    def __call__(self, logits: Tensor, goal: Tensor) -> Tensor:
        climbed = self.objective(logits, goal)
        # Of a true class with a logit of -inf the objective is infinite, and the difference no
        # number: the margin says all the same that the image is lost.
        along = torch.where(climbed.isfinite(), climbed - climbed.detach(), 0)
        return Margin()(logits, goal).detach() + along


@dataclass(frozen=True)
class DLR(Objective):
    """-(z_y - max_{i != y} z_i) / (z_1st - z_3rd): the margin, blind to scale and shift (Croce &
    Hein 2020, eq. 6).

    Needs at least three classes.
    """

    least_classes = 3

    def __call__(self, logits: Tensor, goal: Tensor) -> Tensor:
        need_classes(self, logits.shape[1])
        top = logits.topk(3, dim=1).values
        return (_others(logits, goal) - _of(logits, goal)) / (top[:, 0] - top[:, 2] + 1e-12)


@dataclass(frozen=True)
class AwayFromPrediction(Objective):
    """Cross entropy against the class that the model predicts on the clean image; no labels."""

    asks = True

    def aim(self, model: nn.Module, images: Tensor, labels: Tensor, rng: Rng) -> Tensor:
        return _ask(model, images, rng).argmax(dim=1)

    def __call__(self, logits: Tensor, goal: Tensor) -> Tensor:
        return _cross_entropy(logits, goal)


@dataclass(frozen=True)
class KLDivergence(Objective):
    """KL(softmax(z_clean) || softmax(z)): away from the clean prediction as a whole (Zhang et al.
    2019, eq. 5).

    A class of probability 0 in z_clean adds nothing, also where its logit is -inf.
    """

    asks = True

    def aim(self, model: nn.Module, images: Tensor, labels: Tensor, rng: Rng) -> Tensor:
        return _ask(model, images, rng).softmax(dim=1)

    def __call__(self, logits: Tensor, goal: Tensor) -> Tensor:
        # 0 * -inf would be NaN, in value and derivative.
        log_p = logits.log_softmax(dim=1).masked_fill(goal == 0, 0)
        plain = F.kl_div(log_p, goal, reduction="none").sum(dim=1)
        # Where both predictions are sure of one class, their difference is rounded away, as in
        # `_cross_entropy`. With y that class, p the goal and H its entropy, KL is softplus(o) -
        # sum_{i != y} p_i (z_i - z_y) - H: with respect to z_i, i != y, the derivative is q_i -
        # p_i, in which nothing is lost; with respect to z_y it is minus their sum.
        likeliest = goal.argmax(dim=1)
        other = goal.scatter(1, likeliest[:, None], 0)
        apart = (logits - _of(logits, likeliest)[:, None]).masked_fill(other == 0, 0)
        entropy = -goal.xlogy(goal).sum(dim=1)
        precise, sure = _sure(logits, likeliest)
        precise = precise - (other * apart).sum(dim=1) - entropy
        return torch.where(sure & (other.sum(dim=1).log() < SURE), precise, plain)


def choose_targets(logits: Tensor, labels: Tensor | None, rng: Rng, choice: str) -> Tensor:
    """Target classes (B,), never the true class where labels are given.

    Args:
        logits: (B, K) on the clean images.
        labels: (B,) true classes; where None, the predicted classes take their place.
        rng: streams for ``choice="random"``.
        choice: "least_likely" (smallest logit), "second" (largest logit but the true class'),
            "random" (uniform).
    """
    one_of("target", choice, get_args(TargetChoice))
    true = logits.argmax(dim=1) if labels is None else labels
    if choice == "least_likely":
        # Without labels this is the paper's y_L, the least likely class of all.
        return (logits if labels is None else logits.scatter(1, true[:, None], torch.inf)).argmin(
            dim=1
        )
    if choice == "second":
        return logits.scatter(1, true[:, None], -torch.inf).argmax(dim=1)
    classes = logits.shape[1]
    return (true + rng.integers((), 1, classes)) % classes


def rank_targets(logits: Tensor, labels: Tensor, rng: Rng, choice: str, count: int) -> Tensor:
    """Several different target classes for each image, in the order of ``choice``, never the true
    class.

    Args:
        logits: (B, K) on the clean images.
        labels: (B,) true classes.
        rng: streams for ``choice="random"``.
        choice: as for `choose_targets`, whose class comes first. "second" goes on with the third
            likeliest class, and so on.
        count: how many targets; there are no more than K - 1.

    Returns:
        (B, min(count, K - 1)) int64.
    """
    one_of("target", choice, get_args(TargetChoice))
    classes = logits.shape[1]
    scores = {"second": logits, "least_likely": -logits, "random": rng.uniform((classes,))}[
        choice
    ].nan_to_num()
    order = scores.scatter(1, labels[:, None], -torch.inf).argsort(
        dim=1, descending=True, stable=True
    )
    return order[:, : min(count, classes - 1)]


@dataclass(frozen=True)
class TargetedCrossEntropy(Objective):
    """log softmax(z)_t: towards a target class.

    Args:
        target: which class: "least_likely", "second" (likeliest wrong one) or "random".
    """

    target: TargetChoice = "least_likely"
    asks = True

    def aim(self, model: nn.Module, images: Tensor, labels: Tensor | None, rng: Rng) -> Tensor:  # type: ignore[override]
        return choose_targets(_ask(model, images, rng), labels, rng.fold("target"), self.target)

    def __call__(self, logits: Tensor, goal: Tensor) -> Tensor:
        return -F.cross_entropy(logits, goal, reduction="none")


@dataclass(frozen=True)
class TargetedMargin(Objective):
    """z_t - max_{i != t} z_i: positive exactly where the image is classified as the target (Carlini
    & Wagner 2017).

    Args:
        target: which class: "least_likely", "second" (likeliest wrong one) or "random".
    """

    target: TargetChoice = "least_likely"
    asks = True

    def aim(self, model: nn.Module, images: Tensor, labels: Tensor, rng: Rng) -> Tensor:
        return choose_targets(_ask(model, images, rng), labels, rng.fold("target"), self.target)

    def __call__(self, logits: Tensor, goal: Tensor) -> Tensor:
        return _of(logits, goal) - _others(logits, goal)


@dataclass(frozen=True)
class TargetedDLR(Objective):
    """-(z_y - z_t) / (z_1st - (z_3rd + z_4th) / 2) (Croce & Hein 2020, eq. 7). Needs at least four
    classes.

    Args:
        target: which class: "least_likely", "second" (likeliest wrong one) or "random".
    """

    target: TargetChoice = "second"
    asks = True
    least_classes = 4

    def aim(self, model: nn.Module, images: Tensor, labels: Tensor, rng: Rng) -> Tensor:
        return self.toward(
            labels,
            choose_targets(_ask(model, images, rng), labels, rng.fold("target"), self.target),
        )

    def toward(self, labels: Tensor, targets: Tensor) -> Tensor:
        return torch.stack([labels, targets], dim=1)

    def __call__(self, logits: Tensor, goal: Tensor) -> Tensor:
        need_classes(self, logits.shape[1])
        top = logits.topk(4, dim=1).values
        spread = top[:, 0] - (top[:, 2] + top[:, 3]) / 2
        return (_of(logits, goal[:, 1]) - _of(logits, goal[:, 0])) / (spread + 1e-12)
