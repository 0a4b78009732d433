"""Figures that repeat: the same on every processor up to rounding, and the same each time.

GPUs since Ampere compute convolutions of float32 in TF32 unless they are told not to: 10 bits of
mantissa in place of 23, where bfloat16 has 7. A search that lives on small gains does not see them
then, and a verdict near the boundary depends on the processor. And cuDNN may choose algorithms that
add in another order each time.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

#: What has to be switched how. What rounds convolutions, and products of matrices, has a newer
#: switch besides, which torch refuses to mix with the older one.
SWITCHES: tuple[tuple[Any, str, bool, Any], ...] = (
    (torch.backends.cudnn, "deterministic", True, None),
    (torch.backends.cudnn, "allow_tf32", False, getattr(torch.backends.cudnn, "conv", None)),
    (torch.backends.cuda.matmul, "allow_tf32", False, torch.backends.cuda.matmul),
)


@contextmanager
def repeatable() -> Iterator[None]:
    """Within this context, and in functions that it decorates, float32 is computed in full, and
    convolutions on a GPU give the same each time.

    Evaluations run in it: their attacks, verdicts and measurements. Training does not, whose
    precision is the trainer's. The switches are torch's own and hold for all threads.
    """
    before: list[tuple[Any, str, Any]] = []
    try:
        for part, name, wanted, newer in SWITCHES:
            here: tuple[Any, str, Any] = (part, name, wanted)
            try:
                was = getattr(part, name)
            except RuntimeError:  # somebody has used the newer switch
                here = (newer, "fp32_precision", "ieee")
                was = newer.fp32_precision
            if was != here[2]:
                before.append((here[0], here[1], was))
                setattr(*here)
        yield
    finally:
        for part, name, was in before:
            setattr(part, name, was)
