"""Gradient estimators: how the attacker learns which way is up.

``estimator(loss_fn, images, rng)`` returns loss (B,) and gradient (B, C, H, W). Estimators nest,
and their order matters: ``Average(Smooth(...))`` draws the noise anew for each draw of the defense,
``Smooth(Average(...))`` keeps one noise for all draws of the defense.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Literal

import torch
from torch import Tensor

from robusttrain.attacks.parts.differentiation import input_gradients
from robusttrain.attacks.parts.loss import LossFn
from robusttrain.core.at_once import copies_at_once, gradients_at_once
from robusttrain.core.checked import Count, NonNegative, Share, checked
from robusttrain.core.errors import UserError, within
from robusttrain.core.parts import part
from robusttrain.core.resize import resize_and_pad
from robusttrain.core.rng import Rng

#: The error of an attack that needs gradients where there are none.
NO_GRADIENT = (
    "the loss does not depend differentiably on the image (a detached or non-differentiable step?):"
    " where a defense is in the way, --attack bpda-i goes around it (in Python, source"
    " IdentityBackward); where the model is so inside, make that step a defense"
    " (docs/own-defense.md), or ask alone, by --suite query"
)


class GradientEstimator(ABC):
    """Estimates the gradient of a loss at images."""

    #: Draws of a random model that the estimator averages over for their own sake; 0 for none.
    averaged: int = 0
    #: Whether the loss that it returns is that of one pass over the images themselves. Then it says
    #: of each image whether it is adversarial, and nobody need ask again.
    exact: bool = False

    @property
    @abstractmethod
    def evaluations(self) -> int:
        """Gradient evaluations (one forward and one backward pass) per image and call."""

    @property
    def queries(self) -> int:
        """Forward passes alone, per image and call."""
        return 0

    @property
    def copies(self) -> tuple[int, int | None]:
        """Copies of the batch in one call, and how many of them are evaluated at once.

        None instead of the second number stands for as many as memory is likely to hold.
        """
        return 1, 1

    @property
    def made_of(self) -> GradientEstimator | None:
        """The inner estimator, which this one calls at each of its points; None without one."""
        return part(self, GradientEstimator)[1]  # type: ignore[type-abstract]

    @property
    def asks_elsewhere(self) -> bool:
        """Whether the model is asked about other points than the images: noisy, transformed or
        shifted copies. What it answers is no verdict on the images then.
        """
        return self.made_of is not None and self.made_of.asks_elsewhere

    @property
    def draws_seen(self) -> int:
        """Draws of a random model in one estimate: each copy of the images sees one, also a copy
        that is made for another purpose, such as noise.
        """
        inner = self.made_of.draws_seen if self.made_of else 1
        return max(self.averaged * inner, inner, self.evaluations, self.queries // 2)

    def with_draws(self, draws: int) -> GradientEstimator:
        """The same estimate, averaged over that many draws of a random model."""
        return Average(draws=draws, inner=self)

    def for_one_draw(self) -> GradientEstimator:
        """The same estimate of a model that repeats itself: what averages over draws of the model,
        and over nothing else, takes one.
        """
        return self

    @abstractmethod
    def __call__(self, loss_fn: LossFn, images: Tensor, rng: Rng) -> tuple[Tensor, Tensor]:
        """Loss (B,) and gradient (B, C, H, W) at ``images`` (B, C, H, W), with randomness from
        ``rng`` (B,).
        """

    def at_once(self, batch: int, pixels: int) -> int:
        """Copies of a batch of this size in one call of the inner estimator, or of the model, if
        there are as many; arguments as for `stacked`.
        """
        chunk = self.copies[1]
        which = gradients_at_once if self.evaluations else copies_at_once
        return which(chunk, batch, pixels)

    def stacked(self, batch: int, pixels: int) -> int:
        """How many copies of a batch of this size are evaluated at once, inner estimators included.

        Args:
            batch: images of the batch.
            pixels: pixel values of an image, C H W.
        """
        copies = min(self.copies[0], self.at_once(batch, pixels))
        return copies * (self.made_of.stacked(batch * copies, pixels) if self.made_of else 1)


@dataclass(frozen=True)
class Backprop(GradientEstimator):
    """The gradient that automatic differentiation gives, for one draw of the model's randomness."""

    exact = True

    @property
    def evaluations(self) -> int:
        return 1

    def __call__(self, loss_fn: LossFn, images: Tensor, rng: Rng) -> tuple[Tensor, Tensor]:
        position = rng.position

        def compute(points: Tensor) -> list[Tensor]:
            rng.position = position
            return [loss_fn(points, rng)]

        ((loss, gradient),) = input_gradients(compute, images)
        if gradient is None:
            raise UserError(NO_GRADIENT)
        return loss, gradient


def mean_over_copies(
    copies: int,
    chunk: int | None,
    images: Tensor,
    estimate: Callable[[range], tuple[Tensor, Tensor]],
) -> tuple[Tensor, Tensor]:
    """Mean loss (B,) and gradient (B, C, H, W) over numbered copies of a batch, ``chunk`` copies at
    a time.

    ``estimate(numbers)`` evaluates copies ``numbers`` of ``images`` (B, C, H, W), stacked. Memory
    grows with the chunk, not with the copies.
    """
    batch = len(images)
    chunk = copies_at_once(chunk, batch, images.shape[1:].numel())
    loss = gradient = None
    for start in range(0, copies, chunk):
        numbers = range(start, min(start + chunk, copies))
        losses, gradients = estimate(numbers)
        losses = losses.view(len(numbers), batch).sum(dim=0)
        gradients = gradients.view(len(numbers), batch, *gradients.shape[1:]).sum(dim=0)
        loss = losses if loss is None else loss + losses
        gradient = gradients if gradient is None else gradient.add_(gradients)
    assert loss is not None  # copies is at least 1
    assert gradient is not None
    return loss / copies, gradient / copies


@checked
@dataclass(frozen=True)
class Average(GradientEstimator):
    """Expectation over transformation: the mean gradient over draws of the model's randomness [P1
    4.1].

    Athalye et al. 2018: grad E_t f(t(x)) = E_t grad f(t(x)), estimated with ``draws`` samples.

    Args:
        draws: draws of the randomness.
        inner: estimator for each draw.
        chunk: draws evaluated at once; None for 20, fewer where they make more than 256 images, or
            large ones.
    """

    draws: Count = 20
    inner: GradientEstimator = field(default_factory=Backprop)
    chunk: Count | None = None

    @property
    def averaged(self) -> int:  # type: ignore[override]
        return self.draws

    @property
    def copies(self) -> tuple[int, int | None]:
        return self.draws, self.chunk

    def with_draws(self, draws: int) -> Average:
        return replace(self, draws=draws)

    def for_one_draw(self) -> GradientEstimator:
        # Noise or input diversity inside differ from copy to copy even then.
        return self.inner if self.inner.exact else self

    @property
    def evaluations(self) -> int:
        return self.draws * self.inner.evaluations

    @property
    def queries(self) -> int:
        return self.draws * self.inner.queries

    def __call__(self, loss_fn: LossFn, images: Tensor, rng: Rng) -> tuple[Tensor, Tensor]:
        def estimate(numbers: range) -> tuple[Tensor, Tensor]:
            return self.inner(loss_fn, images.repeat(len(numbers), 1, 1, 1), rng.tile(numbers))

        return mean_over_copies(
            self.draws, self.at_once(len(images), images.shape[1:].numel()), images, estimate
        )


@checked
@dataclass(frozen=True)
class Smooth(GradientEstimator):
    """Noise-reduced gradient: the mean gradient over copies with Gaussian noise [P3 eq. 8, 9].

    G = 1/m sum_i grad L(x + xi_i), xi_i from N(0, sigma^2), with L the loss.

    Args:
        samples: m, the number of noisy copies.
        sigma: standard deviation of the noise, for pixel values in [0, 1].
        inner: estimator for each copy.
        chunk: copies evaluated at once; None for 20, fewer where they make more than 256 images,
            or large ones.
    """

    samples: Count = 20
    sigma: NonNegative = 15 / 255
    inner: GradientEstimator = field(default_factory=Backprop)
    chunk: Count | None = None

    @property
    def asks_elsewhere(self) -> bool:
        return self.sigma > 0 or self.inner.asks_elsewhere

    @property
    def copies(self) -> tuple[int, int | None]:
        return self.samples, self.chunk

    @property
    def evaluations(self) -> int:
        return self.samples * self.inner.evaluations

    @property
    def queries(self) -> int:
        return self.samples * self.inner.queries

    def __call__(self, loss_fn: LossFn, images: Tensor, rng: Rng) -> tuple[Tensor, Tensor]:
        def estimate(numbers: range) -> tuple[Tensor, Tensor]:
            streams = rng.tile(numbers)
            noise = streams.fold("noise").normal(images.shape[1:])
            return self.inner(
                loss_fn, images.repeat(len(numbers), 1, 1, 1) + self.sigma * noise, streams
            )

        return mean_over_copies(
            self.samples, self.at_once(len(images), images.shape[1:].numel()), images, estimate
        )


@checked
@dataclass(frozen=True)
class Diverse(GradientEstimator):
    """Input diversity: the gradient through a random resizing and padding, with probability p [P2
    eq. 5, 6].

    The paper resizes 299 pixels to [299, 330) and pads to 330. Networks with a fixed input size
    cannot take that. So here images keep their side S: they are resized to a side in
    [smallest * S, S) and padded back to S, each image with its own draw. ``smallest`` = 299/330 is
    the paper's ratio.

    Args:
        probability: p, the probability that an image is transformed; 0 leaves every image as it is.
        smallest: least side after resizing, as a fraction of the image's side.
        mode: "bilinear" or "nearest" (the released code's).
        inner: estimator of the gradient behind the transformation.
    """

    probability: Share = 0.5
    smallest: float = 299 / 330
    mode: Literal["bilinear", "nearest"] = "bilinear"
    inner: GradientEstimator = field(default_factory=Backprop)

    def __post_init__(self) -> None:
        within("smallest", self.smallest, 0.01, 1)

    @property
    def asks_elsewhere(self) -> bool:
        return self.probability > 0 or self.inner.asks_elsewhere

    @property
    def evaluations(self) -> int:
        return self.inner.evaluations

    @property
    def queries(self) -> int:
        return self.inner.queries

    def transform(self, images: Tensor, rng: Rng) -> Tensor:
        """T(x; p): each image resized and padded with probability p, (B, C, S, S) to (B, C, S,
        S).
        """
        side = images.shape[-1]
        if images.shape[-2] != side:
            raise UserError(
                f"input diversity needs square images, got {tuple(images.shape[-2:])} pixels"
            )
        lowest = max(1, min(round(self.smallest * side), side - 1))
        sizes = rng.integers((), lowest, side)
        top = rng.integers((), 0, side - sizes + 1)
        left = rng.integers((), 0, side - sizes + 1)
        chosen = rng.uniform(()) < self.probability
        # Resizing S to S is the identity, so one batched operation also serves images that stay as
        # they are.
        zero = torch.zeros_like(top)
        sizes, top, left = (
            torch.where(chosen, sizes, side),
            torch.where(chosen, top, zero),
            torch.where(chosen, left, zero),
        )
        return resize_and_pad(images, sizes, top, left, side, self.mode)

    def __call__(self, loss_fn: LossFn, images: Tensor, rng: Rng) -> tuple[Tensor, Tensor]:
        def diverse_loss(images: Tensor, rng: Rng) -> Tensor:
            return loss_fn(self.transform(images, rng.fold("diverse")), rng)

        return self.inner(diverse_loss, images, rng)
