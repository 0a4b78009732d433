"""A denoising autoencoder: images to images of the same size."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from robusttrain.core.checked import Count, Whole, checked


class _Block(nn.Module):
    """x + two convolutions of it."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.GroupNorm(1, width),
            nn.SiLU(),
            nn.Conv2d(width, width, 3, padding=1),
            nn.SiLU(),
            nn.Conv2d(width, width, 3, padding=1),
        )

    def forward(self, features: Tensor) -> Tensor:
        change: Tensor = self.layers(features)
        return features + change


@checked
class Autoencoder(nn.Module):
    """x + decoder(encoder(x)): what is noise in x is what the network learns to add with the other
    sign.

    The encoder halves height and width twice and doubles the channels each time; the decoder goes
    the same way back. Group norm: an image's result does not depend on its batch.

    Args:
        in_channels: C of the images.
        width: channels at full size.
        depth: residual blocks at the smallest size.
    """

    def __init__(self, in_channels: Count = 3, width: Count = 32, depth: Whole = 2) -> None:
        super().__init__()
        self.in_channels = in_channels
        self.encoder = nn.Sequential(
            nn.Conv2d(in_channels, width, 3, padding=1),
            _Block(width),
            nn.Conv2d(width, 2 * width, 3, stride=2, padding=1),
            _Block(2 * width),
            nn.Conv2d(2 * width, 4 * width, 3, stride=2, padding=1),
            *(_Block(4 * width) for _ in range(depth)),
        )
        self.decoder = nn.Sequential(
            nn.ConvTranspose2d(4 * width, 2 * width, 2, stride=2),
            _Block(2 * width),
            nn.ConvTranspose2d(2 * width, width, 2, stride=2),
            _Block(width),
            nn.GroupNorm(1, width),
            nn.SiLU(),
            nn.Conv2d(width, in_channels, 3, padding=1),
        )

    def forward(self, images: Tensor) -> Tensor:
        """Images (B, C, H, W) in [0, 1] to (B, C, H, W); not clipped."""
        height, width = images.shape[-2:]
        whole = F.pad(images, (0, -width % 4, 0, -height % 4), mode="replicate")
        change: Tensor = self.decoder(self.encoder(whole))
        return images + change[..., :height, :width]
