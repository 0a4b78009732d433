"""Random crops, rescaled [Guo et al. 2018, section 4]."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from robusttrain.core.checked import checked
from robusttrain.core.errors import OptionError
from robusttrain.core.rng import Rng
from robusttrain.models.defense import Defense


@checked
class CropRescale(Defense):
    """A crop at a random place, resized bilinearly to the size that the image had.

    Guo et al. average the predictions for 30 crops: that is a `Vote` on this defense, and the
    preset ``crop-rescale``.

    Args:
        share: side of the crop as a share of the image's side; 90 of 224 pixels in Guo et al.
    """

    random = True

    def __init__(self, share: float = 90 / 224) -> None:
        super().__init__()
        if not 0 < share <= 1:
            raise OptionError("share", share, "must be greater than 0 and at most 1")
        self.share = share

    def size(self, side: int) -> int:
        """Side of the crop, in pixels, of an image's side."""
        return max(1, round(self.share * side))

    def transform(self, images: Tensor, rng: Rng) -> Tensor:
        height, width = images.shape[-2:]
        tall, wide = self.size(height), self.size(width)
        top = rng.integers((1,), 0, height - tall + 1)
        left = rng.integers((1,), 0, width - wide + 1)
        rows = (top + torch.arange(tall, device=images.device))[:, None, :, None]
        columns = (left + torch.arange(wide, device=images.device))[:, None, None, :]
        crops = images.gather(2, rows.expand(-1, images.shape[1], -1, width))
        crops = crops.gather(3, columns.expand(-1, images.shape[1], tall, -1))
        return F.interpolate(crops, size=(height, width), mode="bilinear", align_corners=False)
