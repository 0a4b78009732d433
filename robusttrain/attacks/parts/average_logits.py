"""The gradient of the mean prediction, where EOT takes the mean gradient."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from robusttrain.attacks.asking import call_model
from robusttrain.attacks.parts.gradients import Backprop, GradientEstimator, mean_over_copies
from robusttrain.attacks.parts.loss import Loss, LossFn
from robusttrain.core.checked import Count, checked
from robusttrain.core.errors import UserError
from robusttrain.core.rng import Rng


@checked
@dataclass(frozen=True)
class AverageLogits(GradientEstimator):
    """grad L(log p(x)) with p(x) = 1/n sum_k softmax(f(x; draw k)), a random model's mean
    prediction.

    EOT (`Average`) follows the mean of the gradients of n losses. There a draw in which the image
    is lost already, or safe beyond reach, weighs as much as a draw on the edge. Here the loss is
    that of the averaged model.

    By the chain rule grad L = 1/n sum_k J_k^T dL/dp, with J_k the Jacobian of draw k. So a first
    round of forward passes finds p and dL/dp, and a second one differentiates <dL/dp, p_k>, in
    chunks: memory does not grow with n.

    Args:
        draws: n.
        chunk: draws evaluated at once; None for 20, fewer where they make more than 256 images, or
            large ones.
    """

    draws: Count = 20
    chunk: Count | None = None

    @property
    def averaged(self) -> int:  # type: ignore[override]
        return self.draws

    @property
    def copies(self) -> tuple[int, int | None]:
        return self.draws, self.chunk

    def with_draws(self, draws: int) -> AverageLogits:
        return replace(self, draws=draws)

    def for_one_draw(self) -> AverageLogits:
        return self.with_draws(1)

    @property
    def evaluations(self) -> int:
        return self.draws

    @property
    def queries(self) -> int:
        return self.draws

    def __call__(self, loss_fn: LossFn, images: Tensor, rng: Rng) -> tuple[Tensor, Tensor]:
        # Inside an estimator that stacks copies, the images are no longer those of the goal.
        if not isinstance(loss_fn, Loss) or len(images) != len(loss_fn.goal):
            raise UserError(
                "AverageLogits needs the model itself: it cannot stand inside another estimator"
            )

        def probabilities(points: Tensor, streams: Rng) -> Tensor:
            return call_model(loss_fn.model, points, streams).softmax(dim=1)

        def predict(numbers: range) -> tuple[Tensor, Tensor]:
            with torch.no_grad():
                p = probabilities(images.repeat(len(numbers), 1, 1, 1), rng.tile(numbers))
            return p.new_zeros(len(p)), p

        chunk = self.at_once(len(images), images.shape[1:].numel())
        _, mean = mean_over_copies(self.draws, chunk, images, predict)
        with torch.enable_grad():
            mean.requires_grad_()
            loss = loss_fn.objective(
                mean.clamp_min(torch.finfo(mean.dtype).tiny).log(), loss_fn.goal
            )
            (slope,) = torch.autograd.grad(loss.sum(), mean)

        def differentiate(numbers: range) -> tuple[Tensor, Tensor]:
            def along(images: Tensor, rng: Rng) -> Tensor:
                return (probabilities(images, rng) * slope.repeat(len(numbers), 1)).sum(dim=1)

            return Backprop()(along, images.repeat(len(numbers), 1, 1, 1), rng.tile(numbers))

        _, gradient = mean_over_copies(self.draws, chunk, images, differentiate)
        return loss.detach(), gradient
