"""float32 that is float32 on every processor.

GPUs since Ampere compute convolutions of float32 in TF32 unless they are told not to: 10 bits of
mantissa in place of 23, where bfloat16 has 7. A search that lives on small gains does not see them
then, and a verdict near the boundary depends on the processor.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

#: What torch lets be rounded on a GPU: convolutions, products of matrices. Each has the name of its
#: newer switch, which torch refuses to mix with the older one.
SWITCHES: tuple[tuple[Any, str, Any], ...] = (
    (torch.backends.cudnn, "allow_tf32", getattr(torch.backends.cudnn, "conv", None)),
    (torch.backends.cuda.matmul, "allow_tf32", torch.backends.cuda.matmul),
)


@contextmanager
def full_float32() -> Iterator[None]:
    """Within this context, and in functions that it decorates, float32 is computed in full.

    Evaluations run in it: their attacks, verdicts and measurements. Training does not, whose
    precision is the trainer's. The switches are torch's own and hold for all threads.
    """
    before: list[tuple[Any, str, Any]] = []
    try:
        for part, name, newer in SWITCHES:
            full: Any = False
            try:
                was = getattr(part, name)
            except RuntimeError:  # somebody has used the newer switch
                part, name, full = newer, "fp32_precision", "ieee"
                was = getattr(part, name)
            if was != full:
                before.append((part, name, was))
                setattr(part, name, full)
        yield
    finally:
        for part, name, was in before:
            setattr(part, name, was)
