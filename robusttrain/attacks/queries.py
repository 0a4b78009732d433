"""What an attacker learns from queries alone: answers to stacked images, over several draws of the
model's randomness.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from robusttrain.attacks.asking import call_model
from robusttrain.attacks.parts.objectives import Objective
from robusttrain.core.at_once import copies_at_once
from robusttrain.core.rng import Rng


def ask(model: nn.Module, images: Tensor, rng: Rng, votes: int = 1) -> Tensor:
    """Logits of ``votes`` draws of the model's randomness, (votes, n, K) in float32 at least.

    Args:
        model: images (n, C, H, W) in [0, 1] to logits (n, K).
        images: (n, C, H, W).
        rng: streams of the images, (n,); draw k takes ``rng.fold(k)``.
        votes: draws.
    """
    chunk = copies_at_once(None, len(images), images[0].numel() if len(images) else 1)
    answers = []
    with torch.no_grad():
        for start in range(0, votes, chunk):
            numbers = range(start, min(start + chunk, votes))
            logits = call_model(model, images.repeat(len(numbers), 1, 1, 1), rng.tile(numbers))
            answers.append(logits.view(len(numbers), len(images), logits.shape[-1]))
    logits = torch.cat(answers)
    return logits.to(torch.promote_types(logits.dtype, torch.float32))


def share_wrong(
    model: nn.Module, images: Tensor, labels: Tensor, rng: Rng, votes: int = 1
) -> Tensor:
    """(n,) in [0, 1]: the share of draws in which the answer is not the label; arguments as for
    `ask`, labels (n,).

    A logit that is not finite is no right answer, as in scoring.
    """
    logits = ask(model, images, rng, votes)
    right = (logits.argmax(dim=2) == labels) & logits.isfinite().all(dim=2)
    return 1 - right.to(images.dtype).mean(dim=0)


def share_above(
    model: nn.Module,
    images: Tensor,
    objective: Objective,
    goal: Tensor,
    level: float,
    random: Tensor,
    rng: Rng,
    votes: int = 1,
) -> Tensor:
    """(n,) in [0, 1]: the share of draws in which the objective is greater than ``level``.

    NaN is not greater.

    Args:
        model, images, rng: as for `ask`.
        objective: of the logits.
        goal: (n, ...), what the objective strives for.
        level: the value that the objective has to exceed.
        random: (n,) bool, for which images the model is random.
        votes: draws for these images; the others are asked about once.
    """
    share = images.new_zeros(len(images))
    for chosen, draws in ((~random, 1), (random, votes)):
        which = chosen.nonzero().squeeze(1)
        if len(which):
            logits = ask(model, images[which], rng[which], draws)
            goals = goal[which].repeat(draws, *[1] * (goal.dim() - 1))
            above = objective(logits.flatten(0, 1), goals) > level
            share[which] = above.view(draws, len(which)).to(share.dtype).mean(dim=0)
    return share


def mean_log_probabilities(model: nn.Module, images: Tensor, rng: Rng, votes: int = 1) -> Tensor:
    """(n, K): log of the probabilities' mean over draws, finite; arguments as for `ask`.

    The mean is computed from logits: probabilities themselves round to 0 and 1 where the model is
    sure.
    """
    log_p = ask(model, images, rng, votes).log_softmax(dim=2).logsumexp(dim=0) - math.log(votes)
    return log_p.nan_to_num(nan=-1e4, neginf=-1e4)
