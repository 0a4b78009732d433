"""How far adversarial images are from their images, per image, for pixel values in [0, 1]."""

from __future__ import annotations

from torch import Tensor


def rmsd(adversarial: Tensor, images: Tensor) -> Tensor:
    """Root mean square deviation (B,): sqrt(sum_i (x*_i - x_i)^2 / N), N pixel values an image [P5 2.2; P3 4].

    The papers' values are times 255. At most 1, and at most the Linf distance.
    """
    return (adversarial - images).flatten(1).square().mean(dim=1).sqrt()


def l2(adversarial: Tensor, images: Tensor) -> Tensor:
    """Euclidean length of the change (B,): sqrt(N) times the RMSD."""
    return (adversarial - images).flatten(1).norm(dim=1)


def linf(adversarial: Tensor, images: Tensor) -> Tensor:
    """Largest change of a pixel value (B,)."""
    return (adversarial - images).flatten(1).abs().amax(dim=1)
