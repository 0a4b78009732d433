"""One prediction out of several draws of a random model."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from robusttrain.core.at_once import copies_at_once
from robusttrain.core.rng import Rng


def draws_of(ask: Callable[[Tensor, Rng], Tensor], images: Tensor, rng: Rng, draws: int) -> Tensor:
    """Logits (draws, B, K) of images (B, C, H, W); draw k takes ``rng.fold(k)``.

    Several draws are asked at once, as copies of the batch behind one another.
    """
    batch = len(images)
    chunk = copies_at_once(None, batch, images.shape[1:].numel())
    parts = []
    for start in range(0, draws, chunk):
        numbers = range(start, min(start + chunk, draws))
        logits = ask(images.repeat(len(numbers), 1, 1, 1), rng.tile(numbers))
        parts.append(logits.view(len(numbers), batch, logits.shape[-1]))
    return torch.cat(parts)


def log_mean(logits: Tensor) -> Tensor:
    """Log-probabilities (B, K): the log of the mean softmax of logits (draws, B, K)."""
    return logits.log_softmax(dim=2).logsumexp(dim=0) - math.log(len(logits))


def log_majority(logits: Tensor) -> Tensor:
    """Log-probabilities (B, K): the log of the share of draws that chose a class, of logits
    (draws, B, K).

    The mean softmax counts as one draw more. It decides between classes of equally many draws, and
    has the derivative that counts lack.
    """
    counts = F.one_hot(logits.argmax(dim=2), logits.shape[2]).sum(dim=0)
    mean = log_mean(logits)
    # log(counts + mean), also where a mean is too small for anything but its logarithm.
    return torch.logaddexp(counts.to(mean.dtype).log(), mean) - math.log(len(logits) + 1)
