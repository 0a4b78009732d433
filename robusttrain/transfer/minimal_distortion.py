"""The least distortion along a direction that fools the source and the target: minimal transferable
RMSD [P5 3.2.2].

Symbols: x the image, delta a direction (for FG the gradient of the source's loss, for FGS its sign)
of RMSD 1, x_B = clip(x + B delta, 0, 1), M1 and M2 the source and the target.

The search is linear, as in the paper, and not by bisection: the values of B with an adversarial x_B
often form several intervals.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from robusttrain.attacks import Queried, call_model, prepared
from robusttrain.attacks.parts.differentiation import of_order_one
from robusttrain.attacks.parts.threats import per_image
from robusttrain.core.errors import UserError, above
from robusttrain.evaluation.fitting import ask_about
from robusttrain.transfer.distances import rmsd
from robusttrain.transfer.estimates import Estimate


def minimal_distortion(
    models: Sequence[nn.Module],
    images: Tensor,
    directions: Tensor,
    labels: Tensor,
    goals: Tensor | None = None,
    step: float = 0.1 / 255,
    limit: float = 100 / 255,
    batch: int = 256,
) -> Tensor:
    """RMSD of the first x_B, B = 0, step, 2 step, ... limit, that fools all of ``models``: (n,)
    float32.

    Args:
        models: M1 and M2 (or any number): images to logits, deterministic.
        images: (n, C, H, W), pixel values in [0, 1].
        directions: (n, C, H, W), of any length.
        labels: (n,) true classes; a model is fooled if it gives another class.
        goals: (n,) target classes; if given, a model is fooled if it gives the goal.
        step: difference between two values of B, for pixel values in [0, 1].
        limit: largest B.
        batch: points evaluated at once; finished images leave the search.

    Returns:
        The RMSD of x_B after clipping, which is at most B. Infinity where no point up to the limit
        fools all models, as for a direction of zero.

    Raises:
        UserError: a model is random, and the least of many lucky draws would mean nothing; or
            directions are not finite; or the step or the limit is not positive.
    """
    above("step", step, 0)
    above("limit", limit, 0)
    first = images[:batch]
    numbers = torch.arange(len(first), device=images.device)
    for model in models:
        if len(first) and ask_about(Queried.of(model), first, numbers, 0):
            raise UserError(
                "minimal distortion needs deterministic models: fix the randomness of a random"
                " one first"
            )
    if not directions.isfinite().all():
        raise UserError(
            "minimal distortion: directions hold NaN or infinity (a vanished gradient?)"
        )
    directions, _ = of_order_one(directions)  # however short a sure model's gradient is
    deltas = directions / per_image(rmsd(directions, torch.zeros_like(directions)).clamp_min(1e-30))
    bounds = torch.arange(int(limit / step + 1e-6) + 1, dtype=torch.float64).mul_(step).tolist()
    parts = [slice(start, start + batch) for start in range(0, len(images), batch)]
    return torch.cat(
        [images.new_zeros(0)]
        + [
            _search(
                models,
                images[part],
                deltas[part],
                labels[part],
                None if goals is None else goals[part],
                bounds,
                batch,
            )
            for part in parts
        ]
    )


def _search(
    models: Sequence[nn.Module],
    images: Tensor,
    deltas: Tensor,
    labels: Tensor,
    goals: Tensor | None,
    bounds: Sequence[float],
    batch: int,
) -> Tensor:
    """`minimal_distortion` (n,) for at most ``batch`` images: for each image as many consecutive B
    at once as the batch holds.
    """
    least = torch.full((len(images),), torch.inf, device=images.device)
    alive = torch.arange(len(images), device=images.device)
    start = 0
    while start < len(bounds) and len(alive):
        now = bounds[start : start + batch // len(alive)]
        start += len(now)
        points = torch.cat([(images[alive] + bound * deltas[alive]).clamp_(0, 1) for bound in now])
        fooled = _all_fooled(models, points, labels[alive], None if goals is None else goals[alive])
        fooled = fooled.view(len(now), len(alive))
        first = fooled.int().argmax(dim=0)  # the first of equal values
        place = torch.arange(len(alive), device=images.device)
        reached = points.view(len(now), len(alive), *points.shape[1:])[first, place]
        done = fooled.any(dim=0)
        least[alive] = torch.where(done, rmsd(reached, images[alive]), least[alive])
        alive = alive[~done]
    return least


def _all_fooled(
    models: Sequence[nn.Module], points: Tensor, labels: Tensor, goals: Tensor | None
) -> Tensor:
    """(m,) bool for stacked copies of the images: whether every model is fooled.

    A model is asked only about points that fool all models before it. A logit that is not finite
    proves nothing.
    """
    copies = len(points) // len(labels)
    wanted = (labels if goals is None else goals).repeat(copies)
    fooled = torch.ones(len(points), dtype=torch.bool, device=points.device)
    for model in models:
        left = fooled.nonzero().squeeze(1)
        if not len(left):
            break
        with prepared(model), torch.no_grad(), torch.autocast(points.device.type, enabled=False):
            logits = call_model(model, points[left], None).float()
        matches = logits.argmax(dim=1) == wanted[left]
        fooled[left] = (~matches if goals is None else matches) & logits.isfinite().all(dim=1)
    return fooled


def cumulative(distortions: Tensor, at: Sequence[float]) -> list[tuple[float, Estimate]]:
    """(RMSD r, share of images with a distortion of at most r) for each r of ``at``: [P5 figure
    1].
    """
    return [(r, Estimate.share(distortions <= r)) for r in at]


def least_for(distortions: Tensor, share: float) -> float:
    """The least RMSD that suffices for a share in (0, 1] of the images, e.g. 0.5 or 0.9 [P5 figure
    1].

    Infinity if the search failed for too many images; NaN for no images.
    """
    if not len(distortions):
        return math.nan
    rank = max(1, math.ceil(share * len(distortions) - 1e-9))  # 0.9 * 10 must not round up to 10
    return float(distortions.sort().values[rank - 1])
