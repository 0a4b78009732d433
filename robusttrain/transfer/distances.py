"""Distances between adversarial and clean images, per image, for pixel values in [0, 1]."""

from __future__ import annotations

import math

from torch import Tensor

from robusttrain.attacks.parts.threats import euclidean


def rmsd(adversarial: Tensor, images: Tensor) -> Tensor:
    """Root mean square deviation (B,): sqrt(sum_i (x*_i - x_i)^2 / N), N pixel values an image [P5
    2.2; P3 4].

    The papers' values are 255 times as large. The RMSD is at most 1, and at most the Linf distance.
    """
    return euclidean(adversarial - images) / math.sqrt(math.prod(images.shape[1:]))


def l2(adversarial: Tensor, images: Tensor) -> Tensor:
    """Euclidean length of the change (B,): sqrt(N) times the RMSD."""
    return euclidean(adversarial - images)


def linf(adversarial: Tensor, images: Tensor) -> Tensor:
    """Largest change of a pixel value (B,)."""
    return (adversarial - images).flatten(1).abs().amax(dim=1)
