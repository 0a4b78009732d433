"""Angles between the gradients of models at the same images [P5 6, table 33; P3 3.1].

Symbols: g_i(x) the gradient of model i's loss at the image x; the cell (i, j) is the mean over
images of cos(g_i, g_j) = g_i . g_j / (|g_i| |g_j|). Models whose gradients are orthogonal hardly
share adversarial directions.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torchmetrics.functional import pairwise_cosine_similarity

from robusttrain.attacks import (
    Backprop,
    CrossEntropy,
    GradientEstimator,
    Loss,
    Objective,
    Queried,
    prepared,
)
from robusttrain.core.rng import Rng
from robusttrain.transfer.estimates import Estimate, Matrix


def gradients(
    model: nn.Module,
    images: Tensor,
    goal: Tensor,
    rng: Rng,
    objective: Objective | None = None,
    estimator: GradientEstimator | None = None,
    batch: int = 32,
) -> Tensor:
    """The gradient of a model's loss at each image, (n, C, H, W).

    Args:
        model: images to logits.
        images: (n, C, H, W), pixel values in [0, 1].
        goal: (n,) true classes, or target classes for a targeted objective.
        rng: streams of the images, (n,).
        objective: what is maximised; cross entropy by default.
        estimator: the plain gradient by default; `Smooth` gives the noise-reduced gradient.
        batch: images at a time.
    """
    objective, estimator = objective or CrossEntropy(), estimator or Backprop()
    parts, queried = [], Queried.of(model)
    with prepared(queried):
        for start in range(0, len(images), batch):
            part = slice(start, start + batch)
            loss = Loss(queried, objective, goal[part].clone())
            parts.append(estimator(loss, images[part].clone(), rng[part])[1])
    return torch.cat(parts) if parts else torch.zeros_like(images)


def cosines(by_model: Mapping[str, Tensor]) -> Tensor:
    """cos(g_i, g_j) for each image: (n, M, M) float64, NaN where a gradient is zero.

    Args:
        by_model: model to its gradients (n, C, H, W) on the same images.
    """
    count = len(next(iter(by_model.values())))
    cosine = torch.zeros(count, len(by_model), len(by_model), dtype=torch.float64)
    for i in range(count):
        # One image at a time, in float64: there tiny gradients do not vanish, and equal gradients
        # do not differ by rounding.
        image = torch.stack([each[i].flatten() for each in by_model.values()]).double()
        cosine[i] = pairwise_cosine_similarity(image, zero_diagonal=False)
    return cosine


def angle_matrix(by_model: Mapping[str, Tensor], degrees: bool = False) -> Matrix:
    """Mean cosine between the gradients of each two models, with intervals over images.

    Args:
        by_model: model to its gradients (n, C, H, W) on the same images.
        degrees: whether to give mean angles in degrees instead of mean cosines.

    An image at which either gradient is exactly zero has no angle, and does not count.
    """
    values = cosines(by_model)
    if degrees:
        values = values.clamp(-1, 1).acos().rad2deg()
    names = list(by_model)
    cells = {
        first: {
            second: Estimate.mean(values[:, i, j], values[:, i, j].isfinite())
            for j, second in enumerate(names)
        }
        for i, first in enumerate(names)
    }
    title = "angle between gradients, in degrees" if degrees else "cosine between gradients"
    return Matrix(title, "where neither gradient is zero", cells, corner="model \\ model", unit="")
