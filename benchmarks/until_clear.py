"""EOT that draws only until the direction of the mean gradient is clear, image by image.

Measured by `benchmarks.adaptive_draws`, and no attack of the package: at equal cost a fixed number
of draws is as strong.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from robusttrain.attacks.parts.gradients import Average, Backprop, GradientEstimator
from robusttrain.attacks.parts.loss import Loss, LossFn
from robusttrain.attacks.parts.threats import per_image
from robusttrain.core.at_once import gradients_at_once
from robusttrain.core.checked import Count, Share, checked
from robusttrain.core.errors import UserError
from robusttrain.core.rng import Rng


@checked
@dataclass(frozen=True)
class AverageUntilClear(GradientEstimator):
    """Expectation over transformation with as many draws as an image needs, and no more.

    As `Average` (Athalye et al. 2018, section 4.2), but in rounds. After each of them an image is
    done if the standard error of its mean gradient is small beside the mean's length, the norm
    test of Byrd et al. 2012 ("Sample size selection in optimization methods for machine learning",
    Mathematical Programming 134, section 3):

        tr(S) / n <= tolerance^2 ||m||^2,

    with m the mean and S the sample covariance of the n gradients so far. The left side over
    ||m||^2 estimates 1 - cos^2 of the angle between m and the expected gradient: a tolerance of
    0.5 stops at about 30 degrees. Gradients far from the boundary agree with each other; near the
    boundary draws pull in different directions, and the image gets more of them.

    Draw k of an image is draw k of `Average`, whatever the batch. So a tolerance of 0 gives
    `Average`, on a model that is random. The host waits for the device once a round.

    Args:
        draws: the most draws of the randomness.
        least: draws of a round, and so the fewest.
        tolerance: the standard error of the mean gradient that is small enough, relative to the
            mean's length.
        inner: estimator for each draw.
        chunk: draws of a round evaluated at once; None for as many as memory is likely to hold.
    """

    draws: Count = 30
    least: Count = 5
    tolerance: Share = 0.5
    inner: GradientEstimator = field(default_factory=Backprop)
    chunk: Count | None = None

    @property
    def averaged(self) -> int:  # type: ignore[override]
        return self.draws

    @property
    def copies(self) -> tuple[int, int | None]:
        return min(self.least, self.draws), self.chunk

    def with_draws(self, draws: int) -> Average:
        """That many draws for every image: what the draws that were saved would have shown."""
        return Average(draws, self.inner, self.chunk)

    def for_one_draw(self) -> GradientEstimator:
        # As for `Average`: what is random inside differs from copy to copy even then.
        return self.inner if isinstance(self.inner, Backprop) else self

    @property
    def evaluations(self) -> int:
        """At most; what was spent is counted where the model is asked."""
        return self.draws * self.inner.evaluations

    @property
    def queries(self) -> int:
        return self.draws * self.inner.queries

    def __call__(self, loss_fn: LossFn, images: Tensor, rng: Rng) -> tuple[Tensor, Tensor]:
        # Images leave here, and only the loss itself knows the goals of those that stay.
        if not isinstance(loss_fn, Loss) or len(images) != len(loss_fn.goal):
            raise UserError(
                "AverageUntilClear needs the model itself: it cannot stand inside another estimator"
            )
        total = _Sums.none(images)
        where, left, streams, points = None, loss_fn, rng, images
        for start in range(0, self.draws, self.least):
            numbers = range(start, min(start + self.least, self.draws))
            total.add(self._drawn(numbers, left, points, streams), where, len(numbers))
            if numbers.stop == self.draws:
                break
            unclear = ~total.clear(self.tolerance, where)
            which = unclear.nonzero().squeeze(1)
            if not len(which):
                break
            if len(which) < len(unclear):
                where = which if where is None else where[which]
                left, streams, points = (
                    replace(left, goal=left.goal[which]),
                    streams[which],
                    points[which],
                )
        return total.means()

    def _drawn(
        self, numbers: range, loss_fn: Loss, images: Tensor, rng: Rng
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Sums over draws ``numbers``: losses (B,), gradients (B, C, H, W) and squared lengths of
        the gradients (B,).
        """
        batch = len(images)
        chunk = gradients_at_once(self.chunk, batch, images[0].numel())
        sums: tuple[Tensor, Tensor, Tensor] | None = None
        for start in range(numbers.start, numbers.stop, chunk):
            part = range(start, min(start + chunk, numbers.stop))
            loss, gradient = self.inner(loss_fn, images.repeat(len(part), 1, 1, 1), rng.tile(part))
            gradient = gradient.view(len(part), *images.shape)
            # In double: squares of small gradients would vanish.
            lengths = torch.linalg.vector_norm(gradient, dim=(2, 3, 4), dtype=torch.float64)
            one = loss.view(len(part), batch).sum(dim=0), gradient.sum(dim=0), (lengths**2).sum(0)
            sums = one if sums is None else (sums[0] + one[0], sums[1] + one[1], sums[2] + one[2])
        assert sums is not None  # a round has a draw at least
        return sums


@dataclass
class _Sums:
    """Sums over the draws of each image so far.

    Attributes:
        loss: (B,).
        gradient: (B, C, H, W).
        squares: (B,) float64, squared lengths of the gradients.
        count: (B,), draws.
    """

    loss: Tensor
    gradient: Tensor
    squares: Tensor
    count: Tensor

    @staticmethod
    def none(images: Tensor) -> _Sums:
        zero = torch.zeros_like(images[:, 0, 0, 0])
        return _Sums(zero, torch.zeros_like(images), zero.double(), zero.clone())

    def add(self, drawn: tuple[Tensor, Tensor, Tensor], where: Tensor | None, count: int) -> None:
        """Add the sums over ``count`` more draws of the images ``where``; None for all."""
        if where is None:
            self.loss, self.gradient = self.loss + drawn[0], self.gradient + drawn[1]
            self.squares, self.count = self.squares + drawn[2], self.count + count
            return
        self.loss = self.loss.index_add(0, where, drawn[0])
        self.gradient = self.gradient.index_add(0, where, drawn[1])
        self.squares = self.squares.index_add(0, where, drawn[2])
        self.count = self.count.index_add(0, where, torch.full_like(drawn[0], count))

    def clear(self, tolerance: float, where: Tensor | None) -> Tensor:
        """(n,) bool: whose mean gradient is clear, among the images ``where``."""
        gradient, squares, n = (
            each if where is None else each[where]
            for each in (self.gradient, self.squares, self.count.double())
        )
        length = torch.linalg.vector_norm(gradient, dim=(1, 2, 3), dtype=torch.float64) / n
        variance = (squares / n - length**2) * n / (n - 1)  # tr(S); NaN after a single draw
        # A mean of exactly zero shows nothing, and goes on.
        return (variance / n <= (tolerance * length) ** 2) & (length > 0)

    def means(self) -> tuple[Tensor, Tensor]:
        return self.loss / self.count, self.gradient / per_image(self.count)
