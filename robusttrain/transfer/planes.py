"""Models' answers in a plane of images: decision regions [P5 6, figures 3-5; P3 6.3, eq. 13].

Symbols: x the image, d1 and d2 two directions, (u, v) a point of the plane: clip(x + u d1 + v d2,
0, 1).

Directions are scaled to RMSD 1. Along either axis, u or v is then the RMSD of the change (before
clipping), in the unit of both papers' axes. A direction of signs, as in [P3], has RMSD 1 as it is.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from robusttrain.attacks import Queried, prepared
from robusttrain.core.errors import UserError, above, at_least
from robusttrain.core.rng import Rng


def unit(direction: Tensor) -> Tensor:
    """``direction`` (C, H, W) scaled to RMSD 1, float32.

    Raises:
        UserError: the direction is zero, or not finite.
    """
    wide = direction.double()
    largest = wide.abs().max()
    if not (largest.isfinite() and largest > 0):
        raise UserError(
            f"a direction needs a length, got one whose largest entry is {float(largest):g}"
        )
    wide = wide / largest  # squares of tiny gradients would vanish
    return (wide / wide.square().mean().sqrt()).float()


def rejection(direction: Tensor, along: Tensor) -> Tensor:
    """``direction`` without its component along ``along``, both (C, H, W): float64, orthogonal to
    ``along``.

    [P3 3.1]: with the gradient and the noise-reduced gradient, the model-specific component of the
    gradient.
    """
    base = unit(along).double()
    left = direction.double()
    for _ in range(2):  # the second pass removes the rounding of the first
        left = left - (left * base).sum() / base.square().sum() * base
    return left


def orthogonal(direction: Tensor, rng: Rng) -> Tensor:
    """A uniformly random direction (C, H, W) of RMSD 1, among those orthogonal to ``direction``.

    Args:
        direction: (C, H, W).
        rng: the image's stream, (1,).
    """
    return unit(
        rejection(rng.fold("orthogonal").normal(direction.shape)[0].to(direction.device), direction)
    )


@dataclass(frozen=True)
class Regions:
    """The answer of each model in a plane.

    Args:
        classes: model to (V, U) int64, rows by v, columns by u, both rising; -1 where an answer is
            not finite.
        reach: largest |u| and |v|, an RMSD for pixel values in [0, 1].
    """

    classes: Mapping[str, Tensor]
    reach: float

    def counts(self) -> dict[str, int]:
        """How many different classes each model answers with [P5 table 5]."""
        return {
            name: int(classes[classes >= 0].unique().numel())
            for name, classes in self.classes.items()
        }


def regions(
    models: Mapping[str, nn.Module],
    image: Tensor,
    first: Tensor,
    second: Tensor,
    reach: float,
    rng: Rng,
    points: int = 41,
    batch: int = 128,
) -> Regions:
    """The models' answers on a square grid around ``image`` in the plane of two directions.

    Args:
        models: images to logits. A random model answers with one draw, the same everywhere, which
            shows its regions and not its noise.
        image: (C, H, W), pixel values in [0, 1]; in the middle of the grid.
        first: (C, H, W), the direction of u, of any length; its sign pattern for [P3].
        second: (C, H, W), the direction of v.
        reach: largest |u| and |v|, an RMSD for pixel values in [0, 1].
        rng: the image's stream, (1,).
        points: number on each axis, odd so that the image itself is one of them.
        batch: points evaluated at once.

    Raises:
        UserError: a direction has no length, the number of points is even, or the reach is not
            positive.
    """
    above("reach", reach, 0)
    at_least("points", points, 3)
    if points % 2 == 0:
        raise UserError(f"points = {points}: must be odd, so that the image itself is one of them")
    one, two = unit(first), unit(second)
    line = torch.linspace(-reach, reach, points, device=image.device)
    line[points // 2] = 0
    v, u = (each.flatten() for each in torch.meshgrid(line, line, indexing="ij"))
    classes = {}
    for name, model in models.items():
        parts, queried = [], Queried.of(model)
        with prepared(queried), torch.no_grad(), torch.autocast(image.device.type, enabled=False):
            for start in range(0, len(u), batch):
                uu, vv = (each[start : start + batch, None, None, None] for each in (u, v))
                shown = (image + uu * one + vv * two).clamp_(0, 1)
                streams = Rng(rng.fold("regions").keys.expand(len(shown)))
                logits = queried(shown, streams).float()
                parts.append(logits.argmax(dim=1).where(logits.isfinite().all(dim=1), -1))
        classes[name] = torch.cat(parts).view(points, points).cpu()
    return Regions(classes, reach)
