"""An image-to-image network: h of the reparameterization attack."""

from __future__ import annotations

import json
import os

import torch
from torch import Tensor, nn

from robusttrain.core.checked import Count, Positive, Whole, checked
from robusttrain.core.errors import UserError
from robusttrain.storage.files import parsed
from robusttrain.storage.weights import fit_state, read_metadata, read_tensors, save_tensors


@checked
class FullyConvolutional(nn.Module):
    """h(x) = x + radius * tanh(network(x)): images to images of the same size [P1 4.1,
    "reparameterization"].

    h can reach whatever g reaches within its ball; the authors' code, a sigmoid over [0, 1],
    cannot. Dilated 3x3 convolutions with residual connections see far: 1 + 2 * (1 + sum of
    dilations) pixels across.

    Args:
        radius: how far a pixel may move, in pixel values, as for g.
        channels: C of the images.
        width: channels inside.
        depth: residual blocks of one convolution each; dilations 1, 2, 4, 1, 2, 4, ...
    """

    def __init__(
        self, radius: Positive = 0.2, channels: Count = 3, width: Count = 64, depth: Whole = 8
    ) -> None:
        super().__init__()
        self.options = {"radius": radius, "channels": channels, "width": width, "depth": depth}
        self.radius = radius
        self.first = nn.Conv2d(channels, width, 3, padding=1)
        dilations = [(1, 2, 4)[number % 3] for number in range(depth)]
        self.blocks = nn.ModuleList(
            nn.Sequential(
                nn.BatchNorm2d(width), nn.ReLU(), nn.Conv2d(width, width, 3, padding=d, dilation=d)
            )
            for d in dilations
        )
        self.last = nn.Sequential(nn.BatchNorm2d(width), nn.ReLU(), nn.Conv2d(width, channels, 1))

    def forward(self, images: Tensor) -> Tensor:
        """Images (B, C, H, W) in [0, 1] to (B, C, H, W) within ``radius`` of them."""
        features = self.first(images)
        for block in self.blocks:
            features = features + block(features)
        change: Tensor = self.last(features).tanh()
        return images + self.radius * change

    def save(self, path: str | os.PathLike[str], about: dict[str, str] | None = None) -> None:
        """Write weights and options as safetensors."""
        save_tensors(self, path, {"fully_convolutional": json.dumps(self.options), **(about or {})})

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> FullyConvolutional:
        """The network that ``save`` wrote.

        Raises:
            UserError: there is no such file, or it holds no h, or a damaged one.
        """
        stored = read_metadata(path).get("fully_convolutional")
        try:
            options = parsed(stored or "")
            with torch.random.fork_rng(devices=[]):
                network = cls(
                    **{key: options[key] for key in ("radius", "channels", "width", "depth")}
                )
        except (ValueError, KeyError, TypeError) as error:
            raise UserError(
                f"{path} is no h of a reparameterization; train one: train.py --training"
                " reparameterization"
            ) from error
        fit_state(network, read_tensors(path), path)
        return network.eval()
