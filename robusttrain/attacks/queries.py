"""What an attacker learns from queries alone: answers to stacked images, over several draws of the
model's randomness.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import torch
from torch import Tensor, nn

from robusttrain.attacks.answers import names_a_class
from robusttrain.attacks.asking import call_model
from robusttrain.attacks.parts.objectives import Margin, Objective, repeated
from robusttrain.core.rng import Rng
from robusttrain.models.voting import draws_of, log_mean


def ask(model: nn.Module, images: Tensor, rng: Rng, votes: int = 1) -> Tensor:
    """Logits of ``votes`` draws of the model's randomness, (votes, n, K) in float32 at least.

    Args:
        model: images (n, C, H, W) in [0, 1] to logits (n, K).
        images: (n, C, H, W).
        rng: streams of the images, (n,); draw k takes ``rng.fold(k)``.
        votes: draws.
    """
    with torch.no_grad():
        logits = draws_of(partial(call_model, model), images, rng, votes)
    return logits.to(torch.promote_types(logits.dtype, torch.float32))


def all_or_none(random: Tensor) -> bool | None:
    """Whether the model is random for all images (B,) or for none; None where images differ.

    The host waits for the device, so it asks once, before the loop of an attack.
    """
    if not len(random):
        return False
    some, every = torch.stack([random.any(), random.all()]).tolist()
    return None if some != every else some


def by_draws(
    random: Tensor, votes: int, alike: bool | None = None
) -> Iterator[tuple[Tensor | slice, int]]:
    """The images that one draw judges, and those that ``votes`` draws judge; groups without images
    are left out.

    Args:
        random: (n,) bool, for which images the model is random.
        votes: draws for these images.
        alike: `all_or_none` of them, or of a batch that they were taken from. Without it the host
            waits for the device.

    Yields:
        The images of a group, as an index, and its draws.
    """
    if alike is not None:
        if len(random):
            yield slice(None), votes if alike else 1
        return
    for chosen, draws in ((~random, 1), (random, votes)):
        which = chosen.nonzero().squeeze(1)
        if len(which):
            yield which, draws


def share_of_wrong(logits: Tensor, labels: Tensor) -> Tensor:
    """(n,) in [0, 1]: the share of draws (votes, n, K) whose answer is not the label (n,).

    An answer that names no class (`names_a_class`) is not right, as in scoring.
    """
    right = (logits.argmax(dim=2) == labels) & names_a_class(logits)
    return 1 - right.to(logits.dtype).mean(dim=0)


def mean_margin(logits: Tensor, labels: Tensor, named: Tensor | None = None) -> Tensor:
    """(n,): the mean of the margin over draws (votes, n, K); minus infinity where it is NaN.

    Args:
        logits: of all draws.
        labels: (n,).
        named: (n,) bool, whether the model names a class of the image itself, so that an answer
            that names none is wrong: its margin is just above 0. None: of no image.
    """
    margins = Margin()(logits.flatten(0, 1), labels.repeat(len(logits))).view(logits.shape[:2])
    if named is not None:
        rejected = named & ~names_a_class(logits)
        margins = margins.masked_fill(rejected, torch.finfo(margins.dtype).tiny)
    mean = margins.mean(dim=0)
    return mean.nan_to_num(nan=-torch.inf, posinf=torch.inf, neginf=-torch.inf)


def share_wrong(
    model: nn.Module, images: Tensor, labels: Tensor, rng: Rng, votes: int = 1
) -> Tensor:
    """`share_of_wrong` of ``votes`` draws, (n,); arguments as for `ask`, labels (n,)."""
    return share_of_wrong(ask(model, images, rng, votes), labels).to(images.dtype)


def share_above(
    model: nn.Module,
    images: Tensor,
    objective: Objective,
    goal: Tensor,
    level: float,
    random: Tensor,
    rng: Rng,
    votes: int = 1,
    alike: bool | None = None,
) -> Tensor:
    """(n,) in [0, 1]: the share of draws in which the objective is greater than ``level``.

    An answer that names no class (`names_a_class`) is wrong, as in scoring: it counts for an
    objective that has no target class, and for no other.

    Args:
        model, images, rng: as for `ask`.
        objective: of the logits.
        goal: (n, ...), what the objective strives for.
        level: the value that the objective has to exceed.
        random: (n,) bool, for which images the model is random.
        votes: draws for these images; the others are asked about once.
        alike: as for `by_draws`.
    """
    share = images.new_zeros(len(images))
    for which, draws in by_draws(random, votes, alike):
        logits = ask(model, images[which], rng[which], draws)
        logits = logits.flatten(0, 1)
        above = objective(logits, repeated(goal[which], draws)) > level
        named = names_a_class(logits)
        above = above & named if objective.target is not None else above | ~named
        share[which] = above.view(draws, -1).to(share.dtype).mean(dim=0)
    return share


def mean_log_probabilities(model: nn.Module, images: Tensor, rng: Rng, votes: int = 1) -> Tensor:
    """(n, K): log of the probabilities' mean over draws, finite; arguments as for `ask`.

    The mean is computed from logits: probabilities themselves round to 0 and 1 where the model is
    sure.
    """
    return log_mean(ask(model, images, rng, votes)).nan_to_num(nan=-1e4, neginf=-1e4)
