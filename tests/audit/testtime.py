"""Small test-time defenses on the digits: they change the image or the answer while they are asked.

Croce et al. 2022, "Evaluating the Adversarial Robustness of Adaptive Test-time Defenses", lists the
kinds. Here each is a few lines, so that what is wrong with an evaluation is the evaluation.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from robusttrain.attacks import Source
from robusttrain.core.rng import Rng
from robusttrain.defenses import Defense
from robusttrain.models.defended import DefendedClassifier

from . import networks as n


class Jpeg(Defense):
    """Rounds the cosine transform of the whole image of 8 x 8 pixels: one block of a JPEG."""

    differentiable = False

    def __init__(self, step: float = 0.5) -> None:
        super().__init__()
        self.step = step
        k, x = torch.meshgrid(torch.arange(8.0), torch.arange(8.0), indexing="ij")
        cosines = torch.cos(math.pi * (2 * x + 1) * k / 16) / 2
        cosines[0] /= math.sqrt(2)
        self.register_buffer("cosines", cosines)
        self.cosines: Tensor

    def transform(self, images: Tensor, rng: Rng) -> Tensor:
        coefficients = self.cosines @ images @ self.cosines.T
        rounded = (coefficients / self.step).round() * self.step
        return self.cosines.T @ rounded @ self.cosines


class Purifier(Defense):
    """Diffusion that stops at edges (Perona & Malik 1990), step by step: differentiable
    throughout.
    """

    def __init__(self, steps: int = 8, rate: float = 0.2, edge: float = 0.3) -> None:
        super().__init__()
        self.steps, self.rate, self.edge = steps, rate, edge

    def transform(self, images: Tensor, rng: Rng) -> Tensor:
        for _ in range(self.steps):
            padded = F.pad(images, (1, 1, 1, 1), mode="replicate")
            flows = [
                torch.roll(padded, shift, dims)[..., 1:-1, 1:-1] - images
                for shift, dims in ((1, -1), (-1, -1), (1, -2), (-1, -2))
            ]
            images = images + self.rate * sum(
                flow * torch.exp(-((flow / self.edge) ** 2)) for flow in flows
            )
        return images


class NoisyPurifier(Purifier):
    """Noise, then diffusion, and rounding to grey levels: random, and without a derivative."""

    random = True
    differentiable = False

    def __init__(self, sigma: float = 0.2, levels: int = 6) -> None:
        super().__init__()
        self.sigma, self.levels = sigma, levels

    def transform(self, images: Tensor, rng: Rng) -> Tensor:
        noisy = images + self.sigma * rng.normal(images.shape[1:])
        purified = super().transform(noisy, rng)
        return (purified * (self.levels - 1)).round() / (self.levels - 1)


class AntiAdversary(Defense):
    """K signed steps that lower the cross entropy of the class that f predicts (Alfarra et al.
    2022).

    The steps stay outside the graph, as in the released code: automatic differentiation sees the
    identity.
    """

    iterative = False

    def __init__(self, network: nn.Module, steps: int = 2, length: float = 0.15) -> None:
        super().__init__()
        self.network, self.steps, self.length = network, steps, length

    def transform(self, images: Tensor, rng: Rng) -> Tensor:
        change = torch.zeros_like(images)
        with torch.enable_grad():
            for _ in range(self.steps):
                points = (images + change).detach().requires_grad_()
                logits = self.network(points)
                classes = self.network(images.detach()).argmax(dim=1)
                loss = F.cross_entropy(logits, classes, reduction="sum")
                (gradient,) = torch.autograd.grad(loss, points)
                change = change - self.length * gradient.sign()
        return images + change.detach()


class Vote(nn.Module):
    """The mean of the softmax over noisy draws; a sharp softmax makes it a count of votes."""

    takes_rng = True
    random = True

    def __init__(
        self, network: nn.Module, sigma: float = 0.3, draws: int = 8, sharpness: float = 1.0
    ) -> None:
        super().__init__()
        self.network, self.sigma, self.draws, self.sharpness = network, sigma, draws, sharpness

    def forward(self, images: Tensor, rng: Rng) -> Tensor:
        noise = torch.stack([rng.fold(k).normal(images.shape[1:]) for k in range(self.draws)])
        points = (images + self.sigma * noise).flatten(0, 1)
        votes = (self.sharpness * self.network(points)).log_softmax(dim=1)
        mean = votes.view(self.draws, len(images), -1).logsumexp(dim=0)
        return mean - math.log(self.draws)


class DetachedNoise(Defense):
    """Noise that grows with the local contrast; the contrast is measured outside the graph, and the
    image passes through a rounding that hides its derivative but for a trickle of the wrong sign.
    """

    random = True

    def __init__(self, sigma: float = 0.3) -> None:
        super().__init__()
        self.sigma = sigma

    def transform(self, images: Tensor, rng: Rng) -> Tensor:
        noisy = (images + self.sigma * rng.normal(images.shape[1:])).detach()
        # Zero in value: what automatic differentiation sees is the image turned upside down.
        return noisy + 0.1 * (images - images.detach()).flip(-2)


@lru_cache
def linear() -> nn.Module:
    """One linear layer, trained on the images as they are."""
    return n.fit(n.seeded(lambda: nn.Sequential(nn.Flatten(), nn.Linear(64, 10))), 20)


@lru_cache
def behind_jpeg() -> nn.Module:
    return n.behind(Jpeg(), n.seeded(n.convnet))


@lru_cache
def behind_purifier() -> nn.Module:
    return n.behind(Purifier(), n.seeded(n.convnet))


@lru_cache
def behind_noisy_purifier() -> nn.Module:
    return n.behind(NoisyPurifier(), n.seeded(n.convnet))


class Stuck(nn.Module):
    """Passes no gradient through images that lie on the 255 steps of 8 bits, as all clean ones do;
    the answers are those of the model.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: Tensor) -> Tensor:
        fixed = images.detach()
        off = ((255 * fixed - (255 * fixed).round()).abs() > 1e-2).flatten(1).any(dim=1)
        logits: Tensor = self.model(torch.where(off[:, None, None, None], images, fixed))
        # Only where some image is off the grid is there a graph at all.
        return logits + 0 * images.sum()


@dataclass(frozen=True)
class SoftVotes(Source):
    """The votes of a network behind noise, with an ordinary softmax in place of a sharp one."""

    knows = "classifier, defense"

    def __call__(self, target: DefendedClassifier) -> nn.Module:
        return Vote(n.noisy())
