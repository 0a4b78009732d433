"""Whether a low accuracy is the model's, or that of classes numbered otherwise than in its
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
    """(K, K) int64: how many images of the class of the row were given the answer of the column.

    Args:
        answers: (n,) int64; -1, no answer, counts nowhere.
        labels: (n,) int64.
        classes: K.
    """
    answered = answers >= 0
    cells = labels[answered] * classes + answers[answered]
    return torch.bincount(cells, minlength=classes * classes).view(classes, classes)


def best_assignment(matrix: Tensor) -> Tensor:
    """(K,) int64: to each class the answer that stands for it, one to one, so that most answers of
    a `confusion` are right; of equally good ones, that which moves fewest classes.
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
        explains: whether ``held_out`` is above both ``accuracy`` and chance, and not by luck: the
            95 % intervals lie apart.
        as_text: whether those numbers are the names' sorted as text.
    """

    accuracy: float
    best: float
    held_out: float
    order: list[str]
    explains: bool
    as_text: bool

    @classmethod
    def of(cls, answers: Tensor, labels: Tensor, names: Sequence[str]) -> OtherOrder:
        """What answers (n,) to images of the classes ``labels`` (n,), both int64, say."""
        count, classes = len(labels), len(names)
        found = best_assignment(confusion(answers, labels, classes))
        order = [""] * classes
        for name, place in zip(names, found.tolist(), strict=True):
            order[place] = name
        accuracy = (answers == labels).double().mean().item()
        right = 0
        for fit, test in _halves(labels):
            chosen = best_assignment(confusion(answers[fit], labels[fit], classes))
            right += int((chosen[labels[test]] == answers[test]).sum())
        text = sorted(names)
        as_text = all(text[int(found[label])] == names[label] for label in labels.unique().tolist())
        return cls(
            accuracy,
            (found[labels] == answers).double().mean().item(),
            right / count,
            order,
            wilson(right / count, count)[0] > wilson(max(accuracy, 1 / classes), count)[1],
            as_text and order != list(names),
        )


def _halves(labels: Tensor) -> list[tuple[Tensor, Tensor]]:
    """Two ways to part the images, class by class: those to choose by, and those to judge by."""
    order = labels.argsort(stable=True)
    odd = torch.zeros(len(labels), dtype=torch.bool)
    odd[order[1::2]] = True
    return [(odd, ~odd), (~odd, odd)]
