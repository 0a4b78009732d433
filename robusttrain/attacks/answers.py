"""Logits or probabilities: what kind of answers a model gives, and logits made of either.

A softmax that is taken twice flattens every loss. Its gradient vanishes where the model is sure, so
attacks seem to fail. The logarithm of probabilities is as good as the logits, up to a
constant that no loss sees; log-probabilities are logits as they are.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal

import torch
from torch import Tensor

from robusttrain.core.advice import warn
from robusttrain.core.rng import Rng

Answers = Literal["logits", "probabilities", "sigmoid"]
#: By how much probabilities may miss a sum of one, where the model computes in float32.
SUM = 1e-3

PROBABILITIES = (
    "the model answers with probabilities (at least 0, with a sum of 1): attacks and scores take"
    " their logarithm for logits; let the model end in logits"
)
SIGMOID = (
    "the model answers with one number in [0, 1], which is taken for the probability of class 1;"
    " let the model end in a logit, which is positive for class 1"
)


def names_a_class(logits: Tensor) -> Tensor:
    """(..., K) to (...) bool: whether an answer says which class is likeliest.

    It does not where a logit is NaN, or the largest infinite. Minus infinity elsewhere is an
    impossible class: the logarithm of a probability that is rounded to zero.
    """
    return logits.amax(dim=-1).isfinite()  # the largest of numbers and NaN is NaN


def misclassified(logits: Tensor, labels: Tensor, named: Tensor | None = None) -> Tensor:
    """(..., K) to (...) bool: whether an answer is another class than its label, or names none
    (`names_a_class`), which is wrong, as in scoring.

    Args:
        logits: (..., K).
        labels: (...), or what broadcasts to it.
        named: likewise, bool: whether the model names a class of the image itself. Where it does
            not, an answer without a class is no success of an attack. None: it does everywhere.
    """
    has_class = names_a_class(logits)
    wrong = (logits.argmax(dim=-1) != labels) | ~has_class
    return wrong if named is None else wrong & (has_class | named)


def are_probabilities(answers: Tensor, dtype: torch.dtype | None = None) -> bool:
    """Whether answers (B, K) are at least 0 and sum to one, up to rounding in ``dtype``.

    The host waits for the device.
    """
    rounding = torch.finfo(dtype).eps if dtype is not None else 0
    off = (answers.sum(dim=1) - 1).abs()
    return bool(((answers >= 0).all(dim=1) & (off <= max(SUM, 4 * rounding))).all())


def _are_sigmoid(answers: Tensor) -> bool:
    """Whether answers (B, 2), (0, p) in every row, hold probabilities p of class 1.

    A model that answers zero to every image leaves it open. The host waits for the device.
    """
    zero, p = answers[:, 0], answers[:, 1]
    return bool(((zero == 0) & (p >= 0) & (p <= 1)).all() & (p > 0).any())


def kind_of(
    answers: Sequence[Tensor], dtype: torch.dtype | None, others: Callable[[], Tensor]
) -> Answers:
    """Whether answers are logits or probabilities; warns once where they are not logits.

    Args:
        answers: a model's answers to the first images, (B, K) each.
        dtype: the type in which the model computes.
        others: asks the model about other images, because a few logits may look like
            probabilities by chance.
    """
    if any(len(each) == 0 for each in answers):
        return "logits"
    kind: Answers = "logits"
    if all(are_probabilities(each, dtype) for each in answers):
        kind = "probabilities" if are_probabilities(others(), dtype) else "logits"
    elif all(each.shape[1] == 2 and _are_sigmoid(each) for each in answers):
        kind = "sigmoid" if _are_sigmoid(others()) else "logits"
    if kind != "logits":
        warning = PROBABILITIES if kind == "probabilities" else SIGMOID
        warn(warning)
    return kind


def as_logits(answers: Tensor, kind: Answers) -> Tensor:
    """Logits (B, K) from answers (B, K) of a kind; NaN stays NaN."""
    if kind == "logits":
        return answers
    if kind == "sigmoid":
        p = answers[:, 1:]
        answers = torch.cat([1 - p, p], dim=1)
    # Below the smallest normal number the logarithm, or its derivative, is infinite.
    return answers.clamp_min(torch.finfo(answers.dtype).tiny).log()


def other_images(images: Tensor, rng: Rng | None) -> tuple[Tensor, Rng | None]:
    """A black, a white, a grey and a noise image, (4, C, H, W), and their streams (4,).

    Args:
        images: (B, C, H, W), B > 0, whose size and type they take.
        rng: streams (B,) of the batch; None gives none.
    """
    streams = Rng.for_images(0, torch.arange(4, device=images.device)).fold("others")
    noise = streams[3:].uniform(tuple(images.shape[1:])).to(images.dtype)
    flat = images.new_tensor([0.0, 1.0, 0.5]).view(3, 1, 1, 1).expand(3, *images.shape[1:])
    return torch.cat([flat, noise]), None if rng is None else streams
