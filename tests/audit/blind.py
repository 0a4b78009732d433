"""Evaluations in which nobody followed the target's gradient, and a model that draws where it is
unsure.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from robusttrain.attacks import Linf, RandomNoise, Square

from . import networks as n
from .corpus import EPSILON, Case, evaluation, pgd


class Votes(nn.Module):
    """How many of three shifted copies are taken for each class: whole numbers, no gradient."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: Tensor) -> Tensor:
        logits = torch.stack([self.model(images.roll(step, 3)) for step in (0, 1, -1)])
        return F.one_hot(logits.argmax(dim=2), logits.shape[2]).sum(dim=0).float()


class Unsure(nn.Module):
    """Adds noise of a generator of its own where its confidence is low."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model, self.rng = model, torch.Generator().manual_seed(0)

    def forward(self, images: Tensor) -> Tensor:
        logits = self.model(images)
        unsure = logits.softmax(dim=1).amax(dim=1) < 0.9
        noise = 5 * torch.randn(logits.shape, generator=self.rng)
        return torch.where(unsure[:, None], logits + noise, logits)


BLIND_WRONG = (
    Case(
        "votes under random search",
        "white box tried",
        lambda: evaluation(Votes(n.plain()), Square(queries=300, threat=Linf(EPSILON))),
        slow=True,
    ),
    Case(
        "random points alone",
        "white box tried",
        lambda: evaluation(n.plain(), RandomNoise(queries=50, threat=Linf(EPSILON))),
        slow=True,
    ),
    Case(
        "noise where it is unsure",
        "repeated passes",
        lambda: evaluation(Unsure(n.plain()), pgd(steps=40)),
        slow=True,
    ),
)
BLIND_SOUND = (
    # A white box breaks no more there.
    Case(
        "random search alone",
        None,
        lambda: evaluation(n.robust(), Square(queries=300, threat=Linf(EPSILON))),
        slow=True,
    ),
)
