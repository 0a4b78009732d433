"""Pictures inside a page: small PNG files as data URIs, within a budget."""

from __future__ import annotations

import base64
import io

import torch
from PIL import Image
from torch import Tensor

from robusttrain.reporting.canvas import centred, rgb

#: Side in pixels that larger images are shrunk to.
SIDE = 96
#: Bytes of all pictures of a page: together with a table of 1,000 classes it stays below 2 MB.
BUDGET = 1_300_000


def data_uri(image: Tensor, exact: bool = False) -> str:
    """An image (C, H, W) in [0, 1] as the address of a PNG that lies in the address itself.

    Args:
        image: one or three channels; of others the first one is shown.
        exact: shrink by leaving pixels out, not by mixing them: noise stays noise.
    """
    shown = image[:1] if image.shape[0] not in (1, 3) else image
    picture = Image.fromarray((255 * rgb(shown)).round().astype("uint8"))
    if max(picture.size) > SIDE:
        how = Image.Resampling.NEAREST if exact else Image.Resampling.LANCZOS
        picture.thumbnail((SIDE, SIDE), how)
    file = io.BytesIO()
    picture.save(file, "PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(file.getvalue()).decode("ascii")


def panels(levels: Tensor, change: Tensor) -> tuple[list[str], float]:
    """The image, what the attack made of it, and the change amplified, as data URIs; and the factor
    by which the change is amplified.

    Args:
        levels: (C, H, W) uint8.
        change: (C, H, W), in pixel values.
    """
    image = levels.float() / 255
    change = torch.nan_to_num(change.float())
    largest = float(change.abs().max()) if change.numel() else 0.0
    shown = [
        data_uri(image),
        data_uri((image + change).clamp(0, 1)),
        data_uri(centred(change[None])[0], exact=True),
    ]
    return shown, 0.5 / largest if largest else 0.0
