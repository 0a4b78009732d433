"""Rates of transfer: success and matching rates, the same mistakes, the score of a defense.

``classes`` (n, D, k) are the answers of one target, see `predictions`. A random target counts with
the mean over its draws, so each image counts once, whatever the number of draws.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from robusttrain.core.errors import UserError
from robusttrain.transfer.estimates import Estimate, Matrix
from robusttrain.transfer.predictions import Denominator, within_top

#: Source (or source and attack) to target to ``classes`` of that source's adversarial images.
Answers = Mapping[str, Mapping[str, Tensor]]


def success_matrix(adversarial: Answers, labels: Tensor, of: Denominator, top: int = 1) -> Matrix:
    """How often each source's adversarial images fool each target [P3 eq. 11; P5 2.2: 1 -
    accuracy].

    Args:
        adversarial: source to target to ``classes``.
        labels: (n,) true classes.
        of: images that count.
        top: success means that the true class is not among so many likeliest classes.
    """
    cells = {
        source: {
            target: Estimate.share(1 - within_top(classes, labels, top), of.among[target])
            for target, classes in targets.items()
        }
        for source, targets in adversarial.items()
    }
    return Matrix(f"top-{top} success rate", of.words, cells)


def unattacked(clean: Mapping[str, Tensor], labels: Tensor, of: Denominator) -> dict[str, Estimate]:
    """The success rate of an attack that does nothing, by target: how often random targets
    misclassify the images that count as they are.

    Most draws had these images right, and the others go wrong without an attacker.

    Args:
        clean: target to ``classes`` of the clean images, of other draws than chose the images.
        labels: (n,) true classes.
        of: images that count.
    """
    return dict(success_matrix({"nothing": clean}, labels, of).cells["nothing"])


def matching_matrix(
    adversarial: Answers, labels: Tensor, goals: Tensor, of: Denominator, top: int = 1
) -> Matrix:
    """How often each target takes targeted adversarial images for their goal: the matching rate [P5
    2.2; P3 eq. 12].

    Args:
        adversarial: source to target to ``classes``.
        labels: (n,) true classes.
        goals: (n,) the class that the attack strove for.
        of: images that count.
        top: a match means that the goal is among so many likeliest classes.

    Raises:
        UserError: the goal of an image is its true class.
    """
    same = (labels == goals).nonzero().flatten()
    if len(same):
        raise UserError(
            f"image {int(same[0])}: target label {int(goals[same[0]])} is its true class: choose"
            " another"
        )
    cells = {
        source: {
            target: Estimate.share(within_top(classes, goals, top), of.among[target])
            for target, classes in targets.items()
        }
        for source, targets in adversarial.items()
    }
    return Matrix(f"top-{top} matching rate", of.words, cells)


def same_mistake(
    answers: Mapping[str, Tensor], labels: Tensor, among: Tensor | None = None
) -> Matrix:
    """How often two models that are both wrong give the same wrong answer [P5 appendix, table 9].

    Args:
        answers: model to ``classes`` of one set of adversarial images.
        labels: (n,) true classes.
        among: (n,) bool, images that count at all; None for all.

    The denominator of a cell are the images that both models misclassify, of random models in some
    draw. Draw k of one model is compared with draw k of the other.

    Raises:
        UserError: random models have different numbers of draws.
    """
    draws = max((classes.shape[1] for classes in answers.values()), default=1)
    if odd := {
        name: classes.shape[1]
        for name, classes in answers.items()
        if classes.shape[1] not in (1, draws)
    }:
        raise UserError(
            f"draws of {odd} and {draws} cannot be held against each other: give equal numbers of"
            " draws"
        )
    said = {name: classes[:, :, 0].expand(-1, draws) for name, classes in answers.items()}
    wrong = {name: classes != labels[:, None] for name, classes in said.items()}

    def cell(first: str, second: str) -> Estimate:
        both = wrong[first] & wrong[second]
        # An answer that is not finite (-1) is wrong, but it is no answer that two models could
        # share.
        same = both & (said[first] == said[second]) & (said[first] >= 0)
        counts = both.sum(dim=1)
        share = same.sum(dim=1).double() / counts.clamp_min(1)
        return Estimate.share(share, (counts > 0) if among is None else (counts > 0) & among)

    cells = {first: {second: cell(first, second) for second in answers} for first in answers}
    return Matrix("same mistake", "that both models misclassify", cells, corner="model \\ model")


def challenge_score(answers: Mapping[str, Tensor], labels: Tensor) -> Estimate:
    """Correct answers over all attacks and images / number of adversarial images [P4 eq. 5].

    score = 1/M sum over attacks A, images n of [defense(attack(X_n)) = y_n], M = |A| n.

    Args:
        answers: from each attack to ``classes`` of the defense under test.
        labels: (n,) true classes; every attack is on the same images.

    The interval is over images, not over M: answers on one image under several attacks are not
    independent.

    Raises:
        UserError: there is no attack, or attacks are on different numbers of images.
    """
    if not answers:
        raise UserError("the challenge score needs at least one attack's answers")
    return Estimate.share(
        torch.stack([within_top(classes, labels) for classes in answers.values()]).mean(dim=0)
    )
