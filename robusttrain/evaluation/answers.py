"""What a target answers to a few images: the last of what tells one target from another.

Weights and code are compared as they are read. What a target reads elsewhere (a table of constants
in a module, an object of a library) shows in its answers alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TypeGuard

import torch
from torch import Tensor
from torch.nn.functional import interpolate

from robusttrain.core.rng import Rng
from robusttrain.evaluation.fitting import repeated
from robusttrain.models.declared import dtype_of
from robusttrain.models.defended import DefendedClassifier
from robusttrain.storage.journal import read_fingerprint

#: Images of noise that are asked about, and as many that are smooth, as pictures are. They are no
#: images of the data: which of these are attacked is another question.
FEW = 2
#: By how much rounding may move an answer, beside the spread of its logits; and the answer of what
#: amplifies rounding: a search, or a short float type.
NEAR, FAR = 1e-3, 0.05

Answers = list[list[float]]


def answers_of(target: DefendedClassifier, images: Tensor) -> Answers | None:
    """Four numbers of the logits of each image; None where the same question gets another answer,
    or fails.

    Args:
        target: in evaluation mode.
        images: (B, C, H, W), where the target is; those that are asked about have their shape.
    """
    draws = torch.Generator().manual_seed(0)
    noise = torch.rand((FEW, *images.shape[1:]), generator=draws)
    coarse = torch.rand((FEW, images.shape[1], 4, 4), generator=draws)
    smooth = interpolate(coarse, images.shape[2:], mode="bilinear", antialias=False)
    images = torch.cat([noise, smooth]).to(images)
    try:
        streams = Rng.for_images(0, torch.arange(len(images), device=images.device))
        logits = repeated(target, images, streams)
    except Exception:  # noqa: BLE001 - models are any code, and need not take noise
        return None
    return None if logits is None else [_summary(row) for row in logits.cpu().double()]


def _summary(logits: Tensor) -> list[float]:
    finite = logits.nan_to_num(0.0, 1e6, -1e6)
    mixed = finite @ torch.cos(torch.arange(len(finite), dtype=finite.dtype))
    shown = (finite.min(), finite.max(), finite.mean(), mixed)
    return [float(f"{float(each):.6g}") for each in shown]


def as_noted(answers: Answers | None, target: DefendedClassifier, journal: Path) -> Answers | None:
    """The answers as an earlier run has them, if they differ by rounding alone: another processor
    must find what that run has finished.

    Args:
        answers: of `answers_of`.
        target: whose they are.
        journal: folder of the earlier run.
    """
    before = ((read_fingerprint(journal) or {}).get("target") or {}).get("answers")
    same = answers and _are(before) and alike(answers, before, target)
    return before if same else answers


def alike(answers: Answers, before: Answers, target: DefendedClassifier) -> bool:
    """Whether answers of a target differ by rounding alone."""
    searches = target.defense is not None and target.defense.stepwise
    short = dtype_of(target.classifier) in (torch.bfloat16, torch.float16)
    limit = FAR if searches or short else NEAR
    return len(answers) == len(before) and all(
        _close(one, other, limit) for one, other in zip(answers, before, strict=True)
    )


def _are(noted: object) -> TypeGuard[Answers]:
    return (
        isinstance(noted, list)
        and bool(noted)
        and all(isinstance(row, list) and len(row) == 4 for row in noted)
        and all(isinstance(each, float | int) for row in noted for each in row)
    )


def _close(one: Sequence[float], other: Sequence[float], limit: float) -> bool:
    spread = max(1e-3, one[1] - one[0])
    return all(abs(a - b) <= limit * spread for a, b in zip(one, other, strict=True))
