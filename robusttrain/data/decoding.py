"""Decodes a picture from elsewhere: each mode by its meaning, or with a refusal in one line.

Every image file that a data module reads comes through `decode`. A `Remark` names each decision
about a file, so that code that reads many files can report each decision once, with a number.
"""

from __future__ import annotations

from enum import Enum
from functools import cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from robusttrain.core.errors import UserError
from robusttrain.data.notes import shown
from robusttrain.data.zeroed import zeroed

#: Tags of TIFF and of EXIF.
_BITS, _PHOTOMETRIC, _ORIENTATION = 258, 262, 274
#: Pillow's readers that open a picture and nothing else: a file that is a PNG only by its name must
#: not start Ghostscript (EPS), nor open another file.
_FORMATS = (
    *("AVIF", "BMP", "DIB", "GIF", "JPEG", "JPEG2000", "MPO", "PCX", "PNG", "PPM", "QOI", "SGI"),
    *("TGA", "TIFF", "WEBP"),
)
#: The operation that turns a picture of this EXIF orientation upright.
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_SUFFIXES = {
    *(".apng", ".avif", ".bmp", ".dib", ".gif", ".j2k", ".jfif", ".jp2", ".jpe", ".jpeg", ".jpg"),
    *(".pbm", ".pcx", ".pgm", ".png", ".pnm", ".ppm", ".qoi", ".sgi", ".tga", ".tif", ".tiff"),
    ".webp",
}


class Remark(Enum):
    """A decision about a picture; the value completes "N images ..."."""

    TURNED = "are turned upright by their EXIF orientation"
    NO_EXIF = "have EXIF data that cannot be read: taken as upright"
    TRANSPARENT = "have transparent pixels: laid over white"
    SIXTEEN = "have 16 bits a pixel: 0 to 65535 is read as black to white"
    NARROW = (
        "have 16 bits a pixel and no value above 4095: if 12 bits were meant, they are read too"
        " dark (--data.white 4095)"
    )
    FLOAT = "hold floats: 0 to 1 is read as black to white"
    WHITE = "are read with --data.white as white"
    FRAMES = "hold several frames or pages: the first is read"
    CMYK = "are CMYK: turned into RGB by the plain formula"
    OBLONG = "are not square: of the longer side only the middle is used"
    PROFILE = "carry a colour profile other than sRGB, which is not applied (as in torchvision)"


@cache
def suffixes() -> set[str]:
    """Endings of files, in lower case, that the installed Pillow reads as images."""
    return _SUFFIXES & Image.registered_extensions().keys()


def decode(
    path: str, grey: bool, white: float | None = None
) -> tuple[Image.Image, tuple[Remark, ...]]:
    """A picture upright, opaque, with 8 bits a channel.

    Args:
        path: the file.
        grey: whether to return mode "L" instead of "RGB".
        white: value of white in files with more than 8 bits a channel; None for the format's own.

    Returns:
        The picture, and the decisions about it.

    Raises:
        UserError: the file cannot be read, or the meaning of its values is unclear.
    """
    try:
        with Image.open(path, formats=_formats()) as file:
            if file.format in ("JPEG", "MPO") and (lost := zeroed(Path(path).read_bytes())):
                raise UserError(
                    f"holds {lost:,} bytes of zeros where its pixels should be: a part of the file"
                    " was lost: replace or remove it"
                )
            image, remarks = _first_frame(file)
            image = _eight_bits(image, file, remarks, white)
            image = _opaque(image, remarks)
            return _upright(image, file, remarks).convert("L" if grey else "RGB"), tuple(remarks)
    except UserError as error:
        raise UserError(f"{shown(path)} {error}") from error
    except Exception as error:  # Pillow's decoders may raise any exception on a broken file
        raise unreadable(path, error) from error


def size_of(path: str) -> tuple[int, int]:
    """Width and height of an image once it is upright, from its header."""
    try:
        with Image.open(path, formats=_formats()) as image:
            # Pillow turns TIFF files by itself.
            turned = image.format != "TIFF" and (_orientation(image) or 1) > 4
            width, height = image.size
            return (height, width) if turned else (width, height)
    except Exception as error:
        raise unreadable(path, error) from error


def unreadable(path: str, error: Exception) -> UserError:
    """The error for a file that cannot be decoded."""
    reason = shown(" ".join(str(error).split())) or type(error).__name__
    return UserError(f"cannot read the image {shown(path)} ({reason}): replace or remove it")


@cache
def _formats() -> tuple[str, ...]:
    Image.init()
    return tuple(name for name in _FORMATS if name in Image.OPEN)


def _first_frame(file: Image.Image) -> tuple[Image.Image, list[Remark]]:
    """The first frame, decoded, and remarks about the whole file."""
    remarks = []
    # The other pictures of an MPO are previews, or those of the other eye.
    if getattr(file, "n_frames", 1) > 1 and file.format != "MPO":
        remarks.append(Remark.FRAMES)
    profile = file.info.get("icc_profile") or b""
    if profile and b"sRGB" not in profile and "sRGB".encode("utf-16-be") not in profile:
        remarks.append(Remark.PROFILE)
    file.load()
    return file, remarks


def _eight_bits(
    image: Image.Image, file: Image.Image, remarks: list[Remark], white: float | None
) -> Image.Image:
    """Grey values of more than 8 bits as 8 bits; other modes as they are."""
    if image.mode not in ("I", "F") and not image.mode.startswith("I;16"):
        return image
    values = np.asarray(image).astype(np.float64)
    top = _white(values, image, file, remarks) if white is None else white
    if white is not None:
        remarks.append(Remark.WHITE)
    if not np.isfinite(values).all():
        raise UserError("holds values that are not finite: replace or remove it")
    low, high = values.min(), values.max()
    if low < 0 or high > top:
        raise UserError(
            f"holds values from {low:g} to {high:g}, where black is 0 and white {top:g}: give the"
            " value of white with --data.white, or save it with 8 bits"
        )
    pixels: NDArray[np.float64] = values * (255 / top)
    tags = getattr(file, "tag_v2", {})
    if tags.get(_PHOTOMETRIC) == 0:  # white is zero; Pillow inverts only 8 bits and fewer
        pixels = 255 - pixels
    eight_bit = Image.fromarray(np.rint(pixels).astype(np.uint8))
    if (hidden := file.info.get("transparency")) is not None:
        eight_bit.putalpha(Image.fromarray(np.where(values == hidden, 0, 255).astype(np.uint8)))
    return eight_bit


def _white(
    values: NDArray[np.float64], image: Image.Image, file: Image.Image, remarks: list[Remark]
) -> float:
    """The format's value of white."""
    if image.mode == "F":
        remarks.append(Remark.FLOAT)
        return 1.0
    if image.mode == "I" and file.format not in ("PNG", "PPM"):
        raise UserError(
            "has 32-bit integers, and nothing says which value is white: give it with --data.white"
            " (255, 65535, ...), or save it with 8 or 16 bits"
        )
    (bits,) = {*getattr(file, "tag_v2", {}).get(_BITS, (16,))}
    if bits != 16:
        return float(2**bits - 1)
    remarks.append(Remark.SIXTEEN)
    if 255 < values.max() <= 4095:
        remarks.append(Remark.NARROW)
    return 65535.0


def _opaque(image: Image.Image, remarks: list[Remark]) -> Image.Image:
    """The picture over white, if it is transparent anywhere; CMYK and the like as they are."""
    if image.mode == "CMYK":
        remarks.append(Remark.CMYK)
    if image.mode not in ("LA", "La", "PA", "RGBA", "RGBa") and "transparency" not in image.info:
        return image
    # Pillow converts premultiplied grey (La) only by way of LA.
    image = (image.convert("LA") if image.mode == "La" else image).convert("RGBA")
    lowest, _ = image.getchannel("A").getextrema()
    if lowest == 255:
        return image
    remarks.append(Remark.TRANSPARENT)
    return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)


def _upright(image: Image.Image, file: Image.Image, remarks: list[Remark]) -> Image.Image:
    turn = _orientation(file)
    if turn is None:
        remarks.append(Remark.NO_EXIF)
    if turn not in _TURNS:
        return image
    remarks.append(Remark.TURNED)
    return image.transpose(_TURNS[turn])


def _orientation(file: Image.Image) -> int | None:
    """The EXIF orientation, 1 to 8, of which 1 is upright; None if it cannot be read."""
    try:
        orientation = file.getexif().get(_ORIENTATION, 1)
    except Exception:  # noqa: BLE001  broken EXIF may raise any exception
        return None
    return orientation if isinstance(orientation, int) else 1
