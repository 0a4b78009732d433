"""Whether a low accuracy is the model's fault, or that of classes in another order than in its
training.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from robusttrain.evaluation.scoring import wilson


def confusion(answers: Tensor, labels: Tensor, classes: int) -> Tensor:
    """(K, K) int64: how many images of the row's class got the column's answer.

    Args:
        answers: (n,) int64; -1 stands for no answer, and does not count.
        labels: (n,) int64.
        classes: K.
    """
    answered = answers >= 0
    cells = labels[answered] * classes + answers[answered]
    return torch.bincount(cells, minlength=classes * classes).view(classes, classes)


def best_assignment(matrix: Tensor) -> Tensor:
    """(K,) int64: the answer that stands for each class, one to one, so that most answers of a
    `confusion` are right.

    Of equally good assignments, the one that moves fewest classes.
    """
    classes = len(matrix)
    stay = torch.eye(classes, dtype=torch.int64)
    _, columns = linear_sum_assignment((matrix * (classes + 1) + stay).numpy(), maximize=True)
    return torch.from_numpy(columns)


@dataclass(frozen=True)
class OtherOrder:
    """The numbers of the classes with which most answers would be right.

    Args:
        accuracy: with the numbers as they are, in [0, 1].
        best: with the best other numbers, chosen on the same images.
        held_out: with numbers that were chosen on the other half of the images, class by class.
        order: class names in the order of those numbers.
        explains: whether ``held_out`` is above both ``accuracy`` and chance, with 95 % intervals
            that lie apart.
        undecided: whether it does not, yet ``held_out`` is more than one half, and outside of what
            chance leaves: more images could show that the order explains it.
        as_text: whether ``order`` is that of the names sorted as text.
    """

    accuracy: float
    best: float
    held_out: float
    order: list[str]
    explains: bool
    undecided: bool
    as_text: bool

    @classmethod
    def of(cls, answers: Tensor, labels: Tensor, names: Sequence[str]) -> OtherOrder:
        """The best order for answers (n,) to images of the classes ``labels`` (n,), both int64."""
        count, classes = len(labels), len(names)
        answer_of = best_assignment(confusion(answers, labels, classes))
        order = [""] * classes
        for name, place in zip(names, answer_of.tolist(), strict=True):
            order[place] = name
        accuracy = (answers == labels).double().mean().item()
        right = 0
        for fit, test in _halves(labels):
            chosen = best_assignment(confusion(answers[fit], labels[fit], classes))
            right += int((chosen[labels[test]] == answers[test]).sum())
        text = sorted(names)
        # A model that always gives one answer is right on the largest class, in some order.
        constant = labels.bincount(minlength=classes).max().item() / count
        chance = max(accuracy, constant, 1 / classes)
        as_text = all(
            text[int(answer_of[label])] == names[label] for label in labels.unique().tolist()
        )
        held_out, luck = right / count, wilson(chance, count)[1]
        explains = wilson(held_out, count)[0] > luck
        return cls(
            accuracy,
            (answer_of[labels] == answers).double().mean().item(),
            held_out,
            order,
            explains,
            not explains and held_out > max(0.5, luck),
            as_text and order != list(names),
        )


def _halves(labels: Tensor) -> list[tuple[Tensor, Tensor]]:
    """Two splits of the images, class by class: images to choose by, and images to judge by."""
    order = labels.argsort(stable=True)
    odd = torch.zeros(len(labels), dtype=torch.bool)
    odd[order[1::2]] = True
    return [(odd, ~odd), (~odd, odd)]
