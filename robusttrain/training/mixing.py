"""CutMix and MixUp on whole batches: torchvision's, with draws that belong to the images."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor
from torchvision.transforms import v2

from robusttrain.core.rng import Rng

Mixing = Literal["none", "mixup", "cutmix"]
MIXINGS = ("none", "mixup", "cutmix")


def mix(
    images: Tensor, labels: Tensor, kind: Mixing, alpha: float, classes: int, rng: Rng
) -> tuple[Tensor, Tensor]:
    """Each image mixed with its neighbour in the batch, and the shares of their classes.

    Args:
        images: (B, C, H, W).
        labels: (B,) int64.
        kind: "mixup": a weighted mean (Zhang et al. 2018); "cutmix": a rectangle of the other one
            (Yun et al. 2019); "none".
        alpha: the weight, or the area, is drawn from Beta(alpha, alpha), once for a batch.
        classes: K.
        rng: streams of the images, (B,), of which the first one decides.

    Returns:
        Images (B, C, H, W) and labels (B, K) that sum to 1; for "none" both as they were.
    """
    if kind == "none":
        return images, labels
    transform = (v2.MixUp if kind == "mixup" else v2.CutMix)(alpha=alpha, num_classes=classes)
    # torchvision draws from torch's global generator, on the CPU
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(int(rng.fold("mix").keys[0]))
        mixed: tuple[Tensor, Tensor] = transform(images, labels)
    return mixed
