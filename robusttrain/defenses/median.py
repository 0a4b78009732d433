"""Median smoothing [Xu et al. 2018, section III-B]."""

from __future__ import annotations

import torch
from torch import Tensor

from robusttrain.core.checked import Count, checked
from robusttrain.core.rng import Rng
from robusttrain.models.defense import Defense


def _mirrored(side: int, window: int, device: torch.device) -> Tensor:
    """Pixels of a line of ``side``, with as many beyond its ends, mirrored, as windows reach."""
    places = torch.arange(-(window // 2), side + (window - 1) // 2, device=device) % (2 * side)
    return torch.minimum(places, 2 * side - 1 - places)


@checked
class MedianSmoothing(Defense):
    """Each pixel becomes the median of a square window around it, colour by colour.

    As ``scipy.ndimage.median_filter``, which Xu et al. use: beyond the edge the image is mirrored;
    a window of an even side reaches one pixel farther to the top left, and the median is the larger
    of its two middle values. Almost everywhere the derivative is that of the pixel taken.

    Args:
        window: side of the window, in pixels; 2 and 3 in Xu et al., 1 changes nothing.
    """

    def __init__(self, window: Count = 2) -> None:
        super().__init__()
        self.window = window

    def transform(self, images: Tensor, rng: Rng) -> Tensor:
        height, width = images.shape[-2:]
        rows, columns = (_mirrored(side, self.window, images.device) for side in (height, width))
        padded = images[..., rows, :][..., columns]
        windows = padded.unfold(2, self.window, 1).unfold(3, self.window, 1).flatten(4)
        middle = windows.shape[-1] // 2
        return windows.kthvalue(middle + 1, dim=-1).values
