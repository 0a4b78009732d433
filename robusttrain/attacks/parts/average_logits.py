"""The gradient of the mean prediction, where EOT takes the mean gradient."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from robusttrain.attacks.asking import call_model
from robusttrain.attacks.parts.gradients import Backprop, GradientEstimator, mean_over_copies
from robusttrain.attacks.parts.loss import Loss, LossFn, each_image
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

    By the chain rule grad L = sum_k J_k^T (w_k * dL/dlog p), with J_k the Jacobian of log p_k =
    log softmax(f(x; draw k)) and w_k = p_k / sum_j p_j the share of draw k in each class. So a
    first round of forward passes finds log p and dL/dlog p, and a second one differentiates
    <w_k * dL/dlog p, log p_k>, in chunks: memory does not grow with n. All is computed from
    logarithms. Where a model is sure, the probability of a wrong class rounds to 0, and so would
    its derivative.

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

        batch = len(images)
        chunk = self.at_once(batch, images.shape[1:].numel())

        def log_probabilities(points: Tensor, streams: Rng) -> Tensor:
            return call_model(loss_fn.model, points, streams).log_softmax(dim=1)

        parts = []
        for start in range(0, self.draws, chunk):
            numbers = range(start, min(start + chunk, self.draws))
            with torch.no_grad():
                log_p = log_probabilities(images.repeat(len(numbers), 1, 1, 1), rng.tile(numbers))
            log_p = log_p.view(len(numbers), batch, log_p.shape[1])
            parts.append(log_p.logsumexp(dim=0))
        mean = torch.stack(parts).logsumexp(dim=0) - math.log(self.draws)  # log p
        with torch.enable_grad():
            mean.requires_grad_()
            loss = each_image(loss_fn.objective, mean, loss_fn.goal)
            (slope,) = torch.autograd.grad(loss.sum(), mean)

        def differentiate(numbers: range) -> tuple[Tensor, Tensor]:
            def along(images: Tensor, rng: Rng) -> Tensor:
                log_p = log_probabilities(images, rng)
                # A class that is ruled out by a logit of -inf has no share, and no derivative.
                log_p = log_p.masked_fill(log_p.isneginf(), torch.finfo(log_p.dtype).min)
                share = (log_p - mean.repeat(len(numbers), 1)).detach().exp()  # n w_k
                share = share.masked_fill(share.isinf(), 0)
                return (share * slope.repeat(len(numbers), 1) * log_p).sum(dim=1)

            return Backprop()(along, images.repeat(len(numbers), 1, 1, 1), rng.tile(numbers))

        _, gradient = mean_over_copies(self.draws, chunk, images, differentiate)
        return loss.detach(), gradient
