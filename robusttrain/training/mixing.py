"""CutMix and MixUp on whole batches: torchvision's, with draws that belong to the images."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor
from torchvision.transforms import v2

from robusttrain.core.processes import of_first, of_previous
from robusttrain.core.rng import Rng

Mixing = Literal["none", "mixup", "cutmix"]
MIXINGS = ("none", "mixup", "cutmix")


def mix(
    images: Tensor, labels: Tensor, kind: Mixing, alpha: float, classes: int, rng: Rng
) -> tuple[Tensor, Tensor]:
    """Each image mixed with its neighbour in the batch, and the shares of their classes.

    Where several processes share a batch, they mix as one process would mix the whole of it.

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
    # torchvision mixes each image with the one before it: for the first one that is the last image
    # of the process before. It comes along here, and its own mixture is dropped.
    images, labels = (torch.cat([of_previous(each[-1:]), each]) for each in (images, labels))
    # torchvision draws from torch's global generator, on the CPU
    with torch.random.fork_rng(devices=[]):
        # This generator alone: `torch.manual_seed` would seed those of accelerators, too.
        torch.default_generator.manual_seed(int(of_first(rng.fold("mix").keys[:1])))
        mixed: tuple[Tensor, Tensor] = transform(images, labels)
    return mixed[0][1:], mixed[1][1:]
