"""Networks that predict the noise in an image: the models of denoising diffusion [Ho et al. 2020].

An image x_0 in [-1, 1] becomes, at noise level t = 1..T, x_t = sqrt(a_t) x_0 + sqrt(1 - a_t) e,
with e standard normal and a_t = prod over s <= t of (1 - beta_s). The network sees x_t and t, and
predicts e.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod

import torch
from torch import Tensor, nn

from robusttrain.core.checked import BelowOne, Count, Positive, Whole, checked
from robusttrain.core.errors import OptionError


class NoisePredictor(nn.Module, ABC):
    """e of x_t and t, together with the noise levels that it was trained for.

    Args:
        signal: a_1, ..., a_T, (T,), falling.
    """

    #: Whether it comes with trained weights, and needs no file of ours.
    brings_weights = False
    signal: Tensor

    def __init__(self, signal: Tensor) -> None:
        super().__init__()
        # a_0 = 1: no noise. Levels are no weights: whoever builds the network says them.
        levels = torch.cat([torch.ones(1), signal.float()])
        self.register_buffer("signal", levels, persistent=False)

    @property
    def levels(self) -> int:
        """T."""
        return len(self.signal) - 1

    @abstractmethod
    def forward(self, noisy: Tensor, level: Tensor) -> Tensor:
        """e (B, C, H, W) of x_t (B, C, H, W), for images in [-1, 1], and t (B,) int64 in 1..T."""


class _Block(nn.Module):
    """x + a dilated convolution of it, told the noise level."""

    def __init__(self, width: int, dilation: int) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(1, width)
        self.told = nn.Linear(width, 2 * width)
        self.layers = nn.Sequential(
            nn.SiLU(),
            nn.Conv2d(width, width, 3, padding=dilation, dilation=dilation),
            nn.SiLU(),
            nn.Conv2d(width, width, 1),
        )

    def forward(self, features: Tensor, level: Tensor) -> Tensor:
        scale, shift = self.told(level)[..., None, None].chunk(2, dim=1)
        change: Tensor = self.layers(self.norm(features) * (1 + scale) + shift)
        return features + change


@checked
class NoiseNetwork(NoisePredictor):
    """A small network of dilated convolutions at full size, for small images.

    Args:
        in_channels: C of the images.
        width: channels inside; even.
        depth: residual blocks; dilations 1, 2, 4, 1, 2, 4, ...
        levels: T; 1000 in the paper.
        first_beta: beta_1; 0.0001 in the paper.
        last_beta: beta_T; 0.02 in the paper. beta rises in equal steps.
    """

    def __init__(
        self,
        in_channels: Count = 3,
        width: Count = 32,
        depth: Whole = 6,
        levels: Count = 1000,
        first_beta: Positive = 1e-4,
        last_beta: BelowOne = 0.02,
    ) -> None:
        if width % 2:
            raise OptionError("width", width, "must be even: half are sines, half cosines")
        if first_beta > last_beta:
            raise OptionError("first_beta", first_beta, f"must be at most last_beta = {last_beta}")
        betas = torch.linspace(first_beta, last_beta, levels, dtype=torch.float64)
        super().__init__((1 - betas).cumprod(dim=0))
        self.in_channels, self.width = in_channels, width
        self.told = nn.Sequential(nn.Linear(width, width), nn.SiLU())
        self.first = nn.Conv2d(in_channels, width, 3, padding=1)
        self.blocks = nn.ModuleList(_Block(width, (1, 2, 4)[number % 3]) for number in range(depth))
        self.last = nn.Sequential(
            nn.GroupNorm(1, width), nn.SiLU(), nn.Conv2d(width, in_channels, 3, padding=1)
        )

    def forward(self, noisy: Tensor, level: Tensor) -> Tensor:
        described = self.told(_waves(level, self.width).to(noisy.dtype))
        features = self.first(noisy)
        for block in self.blocks:
            features = block(features, described)
        noise: Tensor = self.last(features)
        return noise


def _waves(level: Tensor, width: int) -> Tensor:
    """(B, width): sines and cosines of t, with wavelengths from 2 pi to 10,000 times that."""
    half = torch.arange(width // 2, device=level.device) / (width // 2)
    angles = level[:, None] * torch.exp(-math.log(10_000) * half)
    return torch.cat([angles.sin(), angles.cos()], dim=1)
