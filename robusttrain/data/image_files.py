"""Folders of image files, decoded by a pool of threads, since Pillow releases Python's lock while
it decodes.
"""

from __future__ import annotations

import math
import os
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from hashlib import blake2b
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from pytorch_lightning.utilities import rank_zero_only
from rich.console import Console
from rich.progress import track
from torch import Tensor
from torch.utils.data import get_worker_info

from robusttrain.core.errors import OptionError, UserError, above, at_least
from robusttrain.core.preparation import Interpolation, Preparation
from robusttrain.data.decoding import Remark, decode, size_of, unreadable
from robusttrain.data.notes import note, shown

_CHUNK = 16
_WORTH_A_BAR = 4096
#: Of a picture that would have more pixels when resized, only the square in the centre is resized.
_LARGE = 1 << 26
_FILTERS: dict[str, Image.Resampling] = {
    "nearest": Image.Resampling.NEAREST,
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
    "lanczos": Image.Resampling.LANCZOS,
}
#: What to do about images that are no squares, or of several sizes.
RESIZE = "give --data.image_size N to resize all of them"


def check_pictures(image_size: int | None, channels: int, white: float | None) -> None:
    """Raise OptionError for arguments of a data set that no picture can be read with."""
    if image_size is not None:
        at_least("image_size", image_size, 1)
    if white is not None:
        above("white", white, 0)
    if channels not in (1, 3):
        raise OptionError("channels", channels, "must be 1 or 3")


def preparation(
    image_size: int | None, resize: int | None, interpolation: Interpolation
) -> Preparation | None:
    """How the options of a data set prepare pictures; None where they stay as they are.

    Raises:
        OptionError: an option that would do nothing, or a crop that is larger than the picture.
    """
    fix = "nothing is resized without image_size: give it, too"
    if image_size is None:
        if resize is not None:
            raise OptionError("resize", resize, fix)
        if interpolation != Preparation.interpolation:
            raise OptionError("interpolation", interpolation, fix)
        return None
    if resize is not None and resize < image_size:
        cropped = f"must be at least image_size, {image_size}, which is cropped from it"
        raise OptionError("resize", resize, cropped)
    return Preparation(image_size, resize or image_size, interpolation)


def side_of(path: str | Path) -> int:
    """Height and width in pixels of a square picture, from its header.

    Raises:
        UserError: it is no square, or cannot be read.
    """
    width, height = size_of(os.fspath(path))
    if width != height:
        raise UserError(
            f"{shown(path)} is {width}x{height} pixels, where the images must be squares: {RESIZE}"
        )
    return width


def faster_in_memory(images: object) -> str:
    """What to add to advice on loading where images are decoded batch by batch."""
    if not isinstance(images, ImageFiles):
        return ""
    needed = math.ceil(images.nbytes / 2**30)
    return f"; --data.memory_limit_gib {needed} decodes them once, into memory"


class ImageFiles:
    """Image files that behave like one uint8 tensor (N, C, S, S): indexing decodes them.

    Args:
        paths: N files.
        size: height and width S in pixels.
        channels: 3 for colour, 1 for grey; files of the other kind are converted.
        preparation: of pictures of any size, to ``size``. None leaves files as they are, and
            another size is an error.
        fix: what to do about a file of another size, as the end of a sentence.
        white: value of white in files with more than 8 bits a channel; None for the format's own.
        notes: gets a line for each decision, which is also logged.
    """

    def __init__(
        self,
        paths: Sequence[str],
        size: int,
        channels: int = 3,
        preparation: Preparation | None = None,
        fix: str = "replace it",
        white: float | None = None,
        notes: list[str] | None = None,
    ) -> None:
        self.paths, self.size, self.channels = paths, size, channels
        self.preparation, self.fix, self.white = preparation, fix, white
        self.notes = [] if notes is None else notes
        self._said: set[Remark] = set()

    def __len__(self) -> int:
        return len(self.paths)

    @property
    def nbytes(self) -> int:
        """Bytes of all images, decoded."""
        return len(self) * self.channels * self.size**2

    def __getitem__(self, indices: Tensor) -> Tensor:
        """(B, C, S, S) uint8: the files with these indices, (B,) int64."""
        return self._decode_all([self.paths[index] for index in indices.tolist()])

    def load(self) -> Tensor:
        """(N, C, S, S) uint8: all images, in memory."""
        return self._decode_all(self.paths)

    def hashes(self, indices: Tensor) -> Tensor:
        """(B, 16) uint8: hashes of the files with these indices, (B,) int64, as they lie there,
        undecoded.
        """
        paths = [self.paths[index] for index in indices.tolist()]
        hashes = np.empty((len(paths), 16), np.uint8)

        def hash_chunk(start: int) -> None:
            for number, path in enumerate(paths[start : start + _CHUNK], start):
                try:
                    content = Path(path).read_bytes()
                except OSError as error:
                    raise unreadable(path, error) from error
                digest = blake2b(content, digest_size=16).digest()
                hashes[number] = np.frombuffer(digest, np.uint8)

        _in_chunks(hash_chunk, len(paths))
        return torch.from_numpy(hashes)

    def _decode_all(self, paths: Sequence[str]) -> Tensor:
        pixels = np.empty((len(paths), self.size, self.size, self.channels), np.uint8)
        remarks: list[tuple[Remark, ...]] = [()] * len(paths)

        def decode_chunk(start: int) -> None:
            for number, path in enumerate(paths[start : start + _CHUNK], start):
                pixels[number], remarks[number] = self._decode(path)

        _in_chunks(decode_chunk, len(paths))
        self._tell(paths, remarks)
        return torch.from_numpy(pixels).permute(0, 3, 1, 2)

    def _decode(self, path: str) -> tuple[np.ndarray, tuple[Remark, ...]]:
        """A picture (S, S, C) uint8, and the remarks about it."""
        image, remarks = decode(path, grey=self.channels == 1, white=self.white)
        if self.preparation is not None:
            if image.width != image.height:
                remarks = (*remarks, Remark.OBLONG)
            image = _prepared(image, self.preparation)
        if image.size != (self.size, self.size):
            width, height = image.size
            raise UserError(
                f"{shown(path)} is {width}x{height} pixels, where the images must be"
                f" {self.size}x{self.size}: {self.fix}"
            )
        return np.asarray(image).reshape(self.size, self.size, self.channels), remarks

    def _tell(self, paths: Sequence[str], remarks: Sequence[tuple[Remark, ...]]) -> None:
        """Note each remark about these files once, with its count if these are all files."""
        counts = Counter(remark for each in remarks for remark in each)
        for remark in [remark for remark in Remark if counts[remark] and remark not in self._said]:
            self._said.add(remark)
            first = next(path for path, each in zip(paths, remarks, strict=True) if remark in each)
            whole = len(paths) == len(self)
            count = f"{counts[remark]:,} of {len(self):,} images" if whole else "some images"
            note(self.notes, f"{count} {remark.value}; the first: {shown(first)}")


def _prepared(image: Image.Image, preparation: Preparation) -> Image.Image:
    """Resize the shorter side, then crop the centre, a square.

    The longer side is rounded down, and the border to the nearest even, as in torchvision's
    `Resize` and `CenterCrop`: another size by one pixel moves the picture by a half.
    """
    size, by = preparation.size, _FILTERS[preparation.interpolation]
    width, height = (preparation.resize * side // min(image.size) for side in image.size)
    left, top = (round((side - size) / 2) for side in (width, height))
    if width * height > _LARGE:  # a strip, say: the same pixels up to rounding
        across, down = image.width / width, image.height / height
        box = (left * across, top * down, (left + size) * across, (top + size) * down)
        return image.resize((size, size), by, box)
    image = image.resize((width, height), by)
    return image.crop((left, top, left + size, top + size))


def _in_chunks(work: Callable[[int], None], images: int) -> None:
    """Do ``work`` for the first image of each chunk, by several threads, with a progress bar."""
    starts = range(0, images, _CHUNK)
    # The worker processes of a DataLoader already decode batches side by side.
    threads = 1 if get_worker_info() else min(os.cpu_count() or 1, 16)
    pool = ThreadPoolExecutor(threads)
    with warnings.catch_warnings():
        # Pillow warns of large images below the limit at which it refuses them.
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)
        try:
            for _ in _shown(pool.map(work, starts), images, len(starts)):
                pass
        finally:
            # A corrupt file, or an interrupt, must not wait until all other files are read.
            pool.shutdown(cancel_futures=True)


def _shown(chunks: Iterator[None], images: int, count: int) -> Iterator[None]:
    """``chunks`` with a progress bar, if there are many images, in the first process only."""
    silent = images < _WORTH_A_BAR or getattr(rank_zero_only, "rank", 0) > 0
    console = Console(stderr=True)
    label = f"Reading {images:,} images"
    yield from track(chunks, label, count, console=console, transient=True, disable=silent)
