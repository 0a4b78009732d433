"""From verdicts to accuracies.

A verdict is "correct" or not, for one image and one draw of the model's randomness. An image's
score is the mean of its verdicts over draws; an accuracy is the mean of scores over images, with an
interval over images.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from robusttrain.attacks import Queried, prepared
from robusttrain.attacks.answers import names_a_class
from robusttrain.core.advice import warn_once
from robusttrain.core.at_once import copies_at_once
from robusttrain.core.repeatable import repeatable
from robusttrain.core.rng import Rng
from robusttrain.models.compiling import gradients_by

NAMELESS = (
    "the model answers some images with NaN, or with infinity as the largest logit: such an answer"
    " names no class and counts as wrong, clean and under attack; look for a division by zero, a"
    " logarithm or an overflow in the model"
)


def wilson(mean: float, count: int) -> list[float]:
    """The 95 % interval of a mean of ``count`` values in [0, 1] (Wilson 1927).

    The interval is made for verdicts. For scores between 0 and 1 it is wider than need be, because
    no variable in [0, 1] varies more than a verdict of the same mean.
    """
    if count == 0:
        return [0.0, 1.0]
    z = 1.959964
    centre = (mean + z * z / (2 * count)) / (1 + z * z / count)
    half = (
        z / (1 + z * z / count) * math.sqrt(mean * (1 - mean) / count + z * z / (4 * count * count))
    )
    return [max(0.0, centre - half), min(1.0, centre + half)]


def median(values: Tensor) -> float:
    """The middle of some values (n,), n at least 1, or the mean of the middle two, in float64;
    ``Tensor.median`` takes the lower of the two.
    """
    ordered = values.double().sort().values
    low, high = ordered[(len(ordered) - 1) // 2].item(), ordered[len(ordered) // 2].item()
    return low if low == high else (low + high) / 2


@repeatable()
def top_classes(model: nn.Module, images: Tensor, rng: Rng, draws: int, top: int = 5) -> Tensor:
    """The likeliest classes, likeliest first, in a float32 forward pass: (B, draws, min(top, K))
    int64.

    Args:
        model: images to logits (B, K), in evaluation mode during the passes. `Queried` asks it, so
            each answer depends on the image's own streams alone, also if the model draws from
            global generators.
        images: (B, C, H, W), pixel values in [0, 1].
        rng: streams of the images; draw k takes ``rng.fold(k)``.
        draws: draws of the model's randomness; 1 for a deterministic model.
        top: how many classes.

    An answer that names no class (`names_a_class`) is -1 throughout, which is no class, and so
    never right; a warning says that there was one. Of equal logits the lower class comes first.
    """
    batch = len(images)
    if not batch:
        return torch.zeros(0, draws, top, dtype=torch.int64)
    chunk = copies_at_once(None, batch, images[0].numel())
    classes, queried = [], Queried.of(model)
    with (
        prepared(queried),
        torch.no_grad(),
        gradients_by("off"),  # a defense may take gradients of its own
        torch.autocast(images.device.type, enabled=False),
    ):
        images = images.clone().float()
        for start in range(0, draws, chunk):
            numbers = range(start, min(start + chunk, draws))
            streams = rng.tile(numbers)
            logits = queried(images.repeat(len(numbers), 1, 1, 1), streams).float()
            order = logits.argsort(dim=1, descending=True, stable=True)[:, :top]
            order = order.where(names_a_class(logits)[:, None], -1)
            classes.append(order.view(len(numbers), batch, -1))
    found = torch.cat(classes).transpose(0, 1).cpu()
    if (found[..., 0] < 0).any():
        warn_once(NAMELESS)
    return found


def verdicts(model: nn.Module, images: Tensor, labels: Tensor, rng: Rng, draws: int) -> Tensor:
    """Whether the model is right, in a float32 forward pass: (B, draws) bool.

    Args:
        model, images, rng, draws: as for `top_classes`.
        labels: (B,) int64.

    An answer that names no class is not right.
    """
    return top_classes(model, images, rng, draws, top=1)[..., 0] == labels.cpu()[:, None]


def worst_case(selection: Tensor, score: Tensor) -> Tensor:
    """Each image's score under the attack that is worst for it: (n,).

    The attack is chosen by one set of draws and scored by another: choosing and scoring by the same
    draws would report the luck of the draw as success of the attack.

    Args:
        selection: (A, n) mean verdicts on the draws that choose, one row per attack (and one for no
            attack).
        score: (A, n) mean verdicts on the draws that score.
    """
    # Of attacks that look equally bad for an image, take the one that is worse for all images; of
    # equals in this, too, the first.
    strongest_first = selection.mean(dim=1).argsort(stable=True)
    worst = strongest_first[selection[strongest_first].argmin(dim=0)]
    return score.gather(0, worst[None]).squeeze(0)
