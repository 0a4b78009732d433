"""Normalisation as the first layer of a classifier, so that attacks work on images in [0, 1]."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from robusttrain.core.errors import OptionError


class Normalize(nn.Module):
    """``(images - mean) / std``, channel by channel.

    The constants are buffers that a state dict leaves out: they belong to the architecture's
    options, and most released files do not hold them. After `take`, a state dict holds the
    constants, too, since the options no longer do.

    Args:
        mean: one value a channel, in units of images in [0, 1].
        std: one value a channel, greater than 0, in the same units.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__()
        if len(mean) != len(std):
            raise OptionError(
                "std", list(std), f"needs as many values as mean, which has {len(mean)}"
            )
        if not all(value > 0 for value in std):
            raise OptionError("std", list(std), "must be greater than 0 in every channel")
        # (1, C, 1, 1) against images (B, C, H, W).
        self.register_buffer(
            "mean",
            torch.tensor(list(mean), dtype=torch.float32).view(1, -1, 1, 1),
            persistent=False,
        )
        self.register_buffer(
            "std", torch.tensor(list(std), dtype=torch.float32).view(1, -1, 1, 1), persistent=False
        )

    def take(self, mean: Sequence[float] | Tensor, std: Sequence[float] | Tensor) -> None:
        """Use the constants of a file of weights from now on; the buffers become persistent.

        Args:
            mean, std: as many values as before.
        """
        for name, values in (("mean", mean), ("std", std)):
            own: Tensor = getattr(self, name)
            self.register_buffer(
                name, torch.as_tensor(values).detach().to(own).reshape(own.shape), persistent=True
            )

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *rest: Any) -> None:
        """torch's hook: take the constants of a state dict if it holds them."""
        mean, std = state_dict.get(f"{prefix}mean"), state_dict.get(f"{prefix}std")
        fit = all(
            constant is not None and constant.numel() == self.mean.numel() and not constant.is_meta
            for constant in (mean, std)
        )
        if fit and mean is not None and std is not None and bool((std > 0).all()):
            self.take(mean, std)
        super()._load_from_state_dict(state_dict, prefix, *rest)

    def forward(self, images: Tensor) -> Tensor:
        """Images (B, C, H, W) in [0, 1] to the same shape, centred and scaled.

        Raises:
            ValueError: constants for several channels, and images of another number of them.
        """
        channels, given = self.mean.shape[1], images.shape[-3]
        # One channel would be spread over all constants, and a network for colour take grey images.
        if channels > 1 and given != channels:
            raise ValueError(f"Normalize has {channels} constants, and images {given} channels")
        return (images - self.mean) / self.std

    def extra_repr(self) -> str:
        return f"mean={self.mean.flatten().tolist()}, std={self.std.flatten().tolist()}"
