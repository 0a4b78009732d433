"""JPEG as a defense [Guo et al. 2018, section 4], and its differentiable twin for attackers [Shin &
Song 2017].
"""

from __future__ import annotations

import math
from functools import cache
from io import BytesIO
from typing import Annotated, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from robusttrain.core.checked import Limit, checked
from robusttrain.core.errors import UserError, within
from robusttrain.core.rng import Rng
from robusttrain.models.clipping import clipped
from robusttrain.models.defense import Defense
from robusttrain.models.stepwise import differentiated_as

#: Pillow's modes, by the number of channels.
MODES = {1: "L", 3: "RGB"}
#: Side of a block of the cosine transform.
BLOCK = 8
#: From red, green, blue to Y, Cb, Cr, less 128 (JFIF).
TO_YCC = torch.tensor(
    [
        [0.299, 0.587, 0.114],
        [-0.168735892, -0.331264108, 0.5],
        [0.5, -0.418687589, -0.081312411],
    ]
)
FROM_YCC = torch.linalg.inv(TO_YCC)
#: 1 is the coarsest.
Quality = Annotated[int, Limit(within, (1, 100))]


def encoded(pixels: np.ndarray, quality: int) -> BytesIO:
    """A JPEG file of pixels (H, W) or (H, W, 3), uint8."""
    file = BytesIO()
    Image.fromarray(pixels).save(file, "JPEG", quality=quality)
    file.seek(0)
    return file


def mode_of(images: Tensor) -> str:
    """Pillow's mode for images (B, C, H, W); UserError if JPEG has none for them."""
    channels = images.shape[1]
    if channels not in MODES:
        raise UserError(
            f"JPEG knows images of 1 and 3 channels, and these have {channels}: take --defense"
            " bit-depth or median instead"
        )
    return MODES[channels]


@checked
class JPEG(Defense):
    """Through the real encoder and decoder, Pillow's, and back.

    Pixel values are rounded to 8 bits before and after. Colour is subsampled 4:2:0, as encoders do
    by default. The derivative that automatic differentiation gives is the identity, so an attacker
    who differentiates naively gets BPDA-I; `twin` is the better one.

    Args:
        quality: 1 to 100; 75 in Guo et al.
    """

    differentiable = False

    def __init__(self, quality: Quality = 75) -> None:
        super().__init__()
        self.quality = quality

    def twin(self) -> Defense:
        return DifferentiableJPEG(self.quality)

    def transform(self, images: Tensor, rng: Rng) -> Tensor:
        mode = mode_of(images)
        pixels = (images.detach().clamp(0, 1) * 255).round().to(torch.uint8)
        arrays = pixels.permute(0, 2, 3, 1).contiguous().cpu().numpy()
        decoded = np.empty_like(arrays)
        for number, array in enumerate(arrays):
            file = encoded(array[..., 0] if mode == "L" else array, self.quality)
            with Image.open(file) as image:
                decoded[number] = np.asarray(image).reshape(array.shape)
        values = torch.from_numpy(decoded).to(images.device).permute(0, 3, 1, 2)
        return differentiated_as(values.to(images.dtype) / 255, images)


def soft_round(values: Tensor) -> Tensor:
    """round(x) + (x - round(x))^3: near rounding in value, and with a derivative [Shin & Song
    2017].
    """
    nearest = values.round()
    return nearest + (values - nearest) ** 3


@cache
def tables(quality: int) -> tuple[list[int], list[int]]:
    """The encoder's steps of quantisation at this quality, row by row: of brightness, of colour."""
    with Image.open(encoded(np.zeros((BLOCK, BLOCK, 3), np.uint8), quality)) as image:
        by_number = image.quantization  # type: ignore[attr-defined]
    return [*by_number[0]], [*by_number[1]]


def cosines() -> Tensor:
    """(8, 8), the orthonormal discrete cosine transform of a line."""
    places = torch.arange(BLOCK, dtype=torch.float64)
    waves = torch.cos(math.pi / BLOCK * (places + 0.5) * places[:, None])
    waves *= math.sqrt(2 / BLOCK)
    waves[0] /= math.sqrt(2)
    return waves.float()


class Constants(NamedTuple):
    """What the encoder's steps multiply and divide by."""

    to_ycc: Tensor
    from_ycc: Tensor
    waves: Tensor
    brightness: Tensor
    colour: Tensor


@cache
def constants(quality: int, device: torch.device) -> Constants:
    """The constants for a quality. They are copied to a device once, since each copy makes the host
    wait.
    """
    brightness, colour = tables(quality)
    # An inference tensor would outlive its context here.
    with torch.inference_mode(False):
        steps = (torch.tensor(each).float().view(BLOCK, BLOCK) for each in (brightness, colour))
        return Constants(*(each.to(device) for each in (TO_YCC, FROM_YCC, cosines(), *steps)))


@checked
class DifferentiableJPEG(Defense):
    """The same steps as `JPEG`, with rounding of coefficients replaced by `soft_round`.

    Colours, subsampling, edges, tables and upsampling are those of libjpeg. Pixel values before and
    after are not rounded.

    Args:
        quality: as for `JPEG`.
    """

    def __init__(self, quality: Quality = 75) -> None:
        super().__init__()
        self.quality = quality

    def transform(self, images: Tensor, rng: Rng) -> Tensor:
        mode = mode_of(images)
        constant = constants(self.quality, images.device)
        with torch.autocast(images.device.type, enabled=False):
            values = clipped(images.float(), 0, 1) * 255
            if mode == "L":
                result = self.quantised(values - 128, constant.brightness, constant.waves) + 128
            else:
                result = self.coloured(values, constant)
        return (clipped(result, 0, 255) / 255).to(images.dtype)

    def coloured(self, values: Tensor, constant: Constants) -> Tensor:
        """Decoded values (B, 3, H, W), not clipped, of red, green and blue from 0 to 255."""
        height, width = values.shape[-2:]
        planes = torch.einsum("ij,bjhw->bihw", constant.to_ycc, values)
        y = self.quantised(planes[:, :1] - 128, constant.brightness, constant.waves) + 128
        rows, columns = -(-height // 2), -(-width // 2)
        small = self.quantised(_halved(planes[:, 1:]), constant.colour, constant.waves)
        small = small[..., :rows, :columns]
        # libjpeg's triangle filter; it leaves planes of one or two columns as they are.
        smooth = {"mode": "bilinear", "align_corners": False}
        chroma = F.interpolate(
            small, scale_factor=2, **(smooth if small.shape[-1] > 2 else {"mode": "nearest"})
        )[..., :height, :width]
        return torch.einsum("ij,bjhw->bihw", constant.from_ycc, torch.cat([y, chroma], 1))

    def quantised(self, planes: Tensor, table: Tensor, waves: Tensor) -> Tensor:
        """Planes (B, C, H, W), around 0, after quantisation of their blocks' coefficients."""
        height, width = planes.shape[-2:]
        padded = F.pad(planes, (0, -width % BLOCK, 0, -height % BLOCK), mode="replicate")
        blocks = padded.unflatten(3, (-1, BLOCK)).unflatten(2, (-1, BLOCK))
        coefficients = torch.einsum("uh,vw,bcyhxw->bcyxuv", waves, waves, blocks) / table
        coefficients = soft_round(coefficients) * table
        blocks = torch.einsum("uh,vw,bcyxuv->bcyhxw", waves, waves, coefficients)
        return blocks.flatten(4).flatten(2, 3)[..., :height, :width]


def _halved(planes: Tensor) -> Tensor:
    """Means of 2 x 2 pixels. The last column is repeated to whole blocks, the last row to an even
    number, as libjpeg does.
    """
    height, width = planes.shape[-2:]
    margins = (0, -width % (2 * BLOCK), 0, height % 2)
    return F.avg_pool2d(F.pad(planes, margins, mode="replicate"), 2)
