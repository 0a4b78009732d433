"""Total variation minimisation [Guo et al. 2018, section 4, equation 2]."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from robusttrain.core.checked import BelowOne, Count, Positive, checked
from robusttrain.core.rng import Rng
from robusttrain.models.defense import Defense

#: Step of the primal variable, and that of the dual ones: their product may be 1/9 at most, since
#: the squared norm of mask, row and column differences together is at most 9.
TAU = 2.0
SIGMA = 1 / 9 / TAU


class _State(NamedTuple):
    """Where the search stands: the image, its extrapolation, and the dual variables of fidelity, of
    differences between rows, and of those between columns.
    """

    image: Tensor
    ahead: Tensor
    fidelity: Tensor
    rows: Tensor
    columns: Tensor


def total_variation(images: Tensor) -> Tensor:
    """TV_2 (B,) of images (B, C, H, W): the sum, over colours, of the norms of all differences of
    neighbouring rows, and of neighbouring columns.
    """
    rows = torch.linalg.vector_norm(images.diff(dim=2), dim=3)
    columns = torch.linalg.vector_norm(images.diff(dim=3), dim=2)
    return rows.flatten(1).sum(dim=1) + columns.flatten(1).sum(dim=1)


def _within(values: Tensor, radius: float, dim: int | tuple[int, ...]) -> Tensor:
    """Projection onto the ball of this radius, along some dimensions."""
    norm = torch.linalg.vector_norm(values, dim=dim, keepdim=True)
    return values * (radius / norm.clamp_min(radius))


@checked
class TotalVariation(Defense):
    """Drops pixels at random and fills in the image of the least variation that agrees with the
    rest:

        min over z of |(1 - X) * (z - x)|_2 + weight TV_2(z),  X ~ Bernoulli(drop), z in [0, 1],

    with a mask X of its own for each colour of each pixel. The first-order primal-dual method of
    Chambolle & Pock (2011) solves it on whole batches, in a fixed number of steps.

    Automatic differentiation goes through all steps, and gives the gradient of what they compute;
    memory grows with the square root of their number. A dropped pixel has no gradient in that draw,
    so attackers average over draws.

    Args:
        drop: share of pixel values that are dropped; 0.5 in the paper.
        weight: lambda; 0.03 in the paper.
        squared: half of the square in place of the norm, as in the authors' code. The norm changes
            no remaining pixel of a small image; the square smooths any image.
        steps: of the solver.
    """

    def __init__(
        self,
        drop: BelowOne = 0.5,
        weight: Positive = 0.03,
        squared: bool = False,
        steps: Count = 100,
    ) -> None:
        super().__init__()
        self.drop, self.weight, self.squared, self.steps = drop, weight, squared, steps

    @property
    def random(self) -> bool:  # type: ignore[override]
        return self.drop > 0

    def transform(self, images: Tensor, rng: Rng) -> Tensor:
        mask = (rng.uniform(images.shape[1:]) >= self.drop).float()
        with torch.autocast(images.device.type, enabled=False):
            return self.solved(images.float(), mask).to(images.dtype)

    def solved(self, images: Tensor, mask: Tensor) -> Tensor:
        """z for images and mask 1 - X, (B, C, H, W) each."""
        start = filled(images, mask)
        state = _State(
            start,
            start,
            torch.zeros_like(start),
            torch.zeros_like(start[..., 1:, :]),
            torch.zeros_like(start[..., 1:]),
        )
        # Segments between which only states are kept for the backward pass.
        length = math.isqrt(self.steps)
        for first in range(0, self.steps, length):
            count = min(length, self.steps - first)
            if torch.is_grad_enabled() and images.requires_grad:
                state = checkpoint(
                    self._moved,
                    state,
                    images,
                    mask,
                    count,
                    use_reentrant=False,
                    preserve_rng_state=False,
                )
            else:
                state = self._moved(state, images, mask, count)
        return state.image

    def _moved(self, state: _State, images: Tensor, mask: Tensor, count: int) -> _State:
        z, ahead, fidelity, rows, columns = state
        for _ in range(count):
            towards = fidelity + SIGMA * mask * (ahead - images)
            fidelity = towards / (1 + SIGMA) if self.squared else _within(towards, 1.0, (1, 2, 3))
            rows = _within(rows + SIGMA * ahead.diff(dim=2), self.weight, 3)
            columns = _within(columns + SIGMA * ahead.diff(dim=3), self.weight, 2)
            # The transpose of taking differences is minus their differences, with zeros around.
            slope = (
                mask * fidelity
                - F.pad(rows, (0, 0, 1, 1)).diff(dim=2)
                - F.pad(columns, (1, 1)).diff(dim=3)
            )
            moved = (z - TAU * slope).clamp(0, 1)
            z, ahead = moved, 2 * moved - z
        return _State(z, ahead, fidelity, rows, columns)


def filled(images: Tensor, mask: Tensor) -> Tensor:
    """Images with weighted means of their neighbours in place of dropped pixels (mask 0): where the
    search begins, without what was dropped.
    """

    def blurred(values: Tensor) -> Tensor:
        for side in (3, 5, 9):
            values = F.avg_pool2d(values, side, 1, side // 2, count_include_pad=False)
        return values

    # A part without any pixel left around begins in grey.
    means = (blurred(images * mask) + 0.5e-6) / (blurred(mask) + 1e-6)
    return images * mask + means * (1 - mask)
