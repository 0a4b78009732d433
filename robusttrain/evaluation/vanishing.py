"""Whether a gradient is zero wherever it is asked for, so that there is nothing to follow."""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor, nn

from robusttrain.attacks import Queried, prepared
from robusttrain.attacks.base import check_images
from robusttrain.attacks.parts.differentiation import input_gradients
from robusttrain.core.rng import Rng

#: Images that the gradient is asked for; and where it is zero there, before it counts as zero.
FEW, MORE = 2, 8
#: What is wrong then, and the way out.
ZERO = (
    "the gradient is exactly zero wherever it was asked for (a step that rounds, or logits that"
    " saturate?), so there is nothing to follow, and what they leave says nothing of robustness:"
    " make that step a defense that is not differentiable (docs/own-defense.md) and go around it"
    " (bpda-i), or ask by answers, --suite query"
)


def _unlike(source: Queried, rng: Rng, points: Tensor) -> list[Tensor]:
    """A loss (B,) of logits that heeds each of them otherwise: that of probabilities is not
    constant.
    """
    logits = source(points, rng)
    weights = torch.linspace(-1, 1, logits.shape[1], dtype=logits.dtype, device=logits.device)
    return [(logits * weights).sum(dim=1)]


def vanishes(source: nn.Module, images: Tensor, indices: Tensor) -> bool:
    """Whether the gradient that a source hands on is zero at every point that it is asked for: a
    few images, and then more of them, and points halfway from these to noise.

    Args:
        source: images to logits, which hands a gradient on.
        images: (B, C, H, W), of which a few are asked about.
        indices: (B,) int64, in their data set.
    """
    queried, images = Queried.of(source), check_images(images[:MORE])
    rng = Rng.for_images(0, indices[:MORE].to(images.device)).fold("vanishes")
    noise = rng.fold("points").uniform(tuple(images.shape[1:])).to(images.dtype)
    for points in (images[:FEW], images, (images + noise) / 2):
        loss = partial(_unlike, queried, rng[: len(points)])
        try:
            with prepared(queried), torch.random.fork_rng(devices=[]):
                ((_, gradient),) = input_gradients(loss, points.clone())
        except Exception:  # noqa: BLE001 - models are any code, which attacks report with their names
            return False
        if gradient is None or gradient.any():  # NaN is not zero
            return False
    return True
