"""Gradients from losses alone."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from robusttrain.attacks.parts.gradients import GradientEstimator, mean_over_copies
from robusttrain.attacks.parts.loss import LossFn
from robusttrain.attacks.parts.threats import per_image
from robusttrain.core.checked import Count, Positive, checked
from robusttrain.core.rng import Rng


@checked
@dataclass(frozen=True)
class FiniteDifference(GradientEstimator):
    """Central differences of the loss [P1 eq. 4], along random directions or pixel by pixel.

        grad L = 1/n sum_k  (L(x + h u_k) - L(x - h u_k)) / 2h  u_k

    Random directions have entries of -1 and 1 (SPSA: Spall 1992), whose outer products average to
    the identity. Pixel by pixel, u_k are unit vectors, and the sum is not divided. The paper
    differentiates g in this way and multiplies with f_a's gradient; here the differences are those
    of the whole loss, which needs no derivative at all. Both ends of a difference see the same draw
    of the model's randomness, else the difference would mostly measure the draws. Each direction
    has a draw of its own.

    Args:
        directions: n. Pixel by pixel, that many pixels, chosen anew for each image and call. If n
            is at least C * H * W, all pixels take part: equation 4 in full.
        size: h, in pixel values. Where the loss jumps, as behind g, a small h sees nothing and a
            large h too much.
        along: "random" or "pixels".
        chunk: directions evaluated at once; None for as many as make a batch of 256 images, fewer
            if large.
    """

    directions: Count = 100
    size: Positive = 0.01
    along: Literal["random", "pixels"] = "random"
    chunk: Count | None = None

    @property
    def asks_elsewhere(self) -> bool:
        return True

    @property
    def copies(self) -> tuple[int, int | None]:
        return self.directions, self.chunk

    @property
    def evaluations(self) -> int:
        return 0

    @property
    def queries(self) -> int:
        """An upper bound: pixel by pixel there are no more directions than pixel values."""
        return 2 * self.directions

    def __call__(self, loss_fn: LossFn, images: Tensor, rng: Rng) -> tuple[Tensor, Tensor]:
        shape, pixels = images.shape[1:], images[0].numel()
        count = self.directions
        if self.along == "pixels":
            count = min(count, pixels)
            chosen = rng.fold("pixels").permutation(pixels)[:, :count]

        def directions(numbers: range, streams: Rng) -> Tensor:
            if self.along == "random":
                return streams.fold("direction").integers(shape, 0, 2).to(images.dtype) * 2 - 1
            # Copy after copy, as the streams
            which = chosen[:, numbers.start : numbers.stop].T.reshape(-1, 1)
            return images.new_zeros(len(which), pixels).scatter_(1, which, 1).view(-1, *shape)

        def difference(numbers: range) -> tuple[Tensor, Tensor]:
            streams = rng.tile(numbers)
            u, points = directions(numbers, streams), images.repeat(len(numbers), 1, 1, 1)
            with torch.no_grad():
                # A copy of the streams for each end: drawing advances them.
                after = loss_fn(points + self.size * u, streams[:])
                before = loss_fn(points - self.size * u, streams[:])
            return (after + before) / 2, u * per_image((after - before) / (2 * self.size))

        loss, gradient = mean_over_copies(count, self.chunk, images, difference)
        return loss, gradient * count if self.along == "pixels" else gradient
