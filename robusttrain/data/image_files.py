"""Folders of image files, decoded by a pool of threads (Pillow releases Python's lock while it
decodes).
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from pytorch_lightning.utilities import rank_zero_only
from rich.console import Console
from rich.progress import track
from torch import Tensor
from torch.utils.data import get_worker_info

from robusttrain.core.errors import UserError

_SUFFIXES = (".bmp", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp")
_CHUNK = 16
_WORTH_A_BAR = 4096


def subfolders(folder: Path) -> list[str]:
    """Sorted names of the folders in ``folder``, without hidden ones."""
    return sorted(entry.name for entry in os.scandir(folder) if entry.is_dir() and not entry.name.startswith("."))


def images_in(folder: Path) -> list[str]:
    """Sorted paths of the image files directly in ``folder``; none where there is no such
    folder.
    """
    if not folder.is_dir():
        return []
    return sorted(entry.path for entry in os.scandir(folder) if entry.name.lower().endswith(_SUFFIXES))


def size_of(path: str) -> tuple[int, int]:
    """Width and height of an image, from its header."""
    try:
        with Image.open(path) as image:
            return image.size
    except Exception as error:
        raise _unreadable(path, error) from error


class ImageFiles:
    """Image files as if they were one uint8 tensor (N, C, S, S): indexing decodes.

    Args:
        paths: N files.
        size: height and width S in pixels.
        channels: 3 for colour, 1 for grey; files of the other kind are converted.
        resize: pixels that the shorter side is resized to (bicubic, antialiased) before the square
            of ``size`` in the centre is cropped; at least ``size``. None leaves files as they are,
            and another size is an error.
        fix: what to do about a file of another size, as the end of a sentence.
    """

    def __init__(
        self, paths: Sequence[str], size: int, channels: int = 3, resize: int | None = None, fix: str = "replace it"
    ) -> None:
        self.paths, self.size, self.channels = paths, size, channels
        self.resize, self.fix = resize, fix

    def __len__(self) -> int:
        return len(self.paths)

    @property
    def nbytes(self) -> int:
        """Bytes of the whole, decoded."""
        return len(self) * self.channels * self.size**2

    def __getitem__(self, indices: Tensor) -> Tensor:
        """(B, C, S, S) uint8: the files with these indices, (B,) int64."""
        return self._decode_all([self.paths[index] for index in indices.tolist()])

    def load(self) -> Tensor:
        """(N, C, S, S) uint8: all of them, in memory."""
        return self._decode_all(self.paths)

    def _decode_all(self, paths: Sequence[str]) -> Tensor:
        pixels = np.empty((len(paths), self.size, self.size, self.channels), np.uint8)

        def decode(start: int) -> None:
            for number, path in enumerate(paths[start : start + _CHUNK], start):
                pixels[number] = self._decode(path)

        starts = range(0, len(paths), _CHUNK)
        # In the worker processes of a DataLoader the batches are already decoded side by side.
        threads = 1 if get_worker_info() else min(os.cpu_count() or 1, 16)
        pool = ThreadPoolExecutor(threads)
        try:
            for _ in _shown(pool.map(decode, starts), len(paths), len(starts)):
                pass
        finally:
            # A corrupt file, or an interrupt, must not wait until all the others are decoded.
            pool.shutdown(cancel_futures=True)
        return torch.from_numpy(pixels).permute(0, 3, 1, 2)

    def _decode(self, path: str) -> np.ndarray:
        """(S, S, C) uint8."""
        try:
            with Image.open(path) as file:
                image: Image.Image = file.convert("RGB" if self.channels == 3 else "L")
                if self.resize is not None:
                    image = _resized(image, self.resize, self.size)
        except Exception as error:  # Pillow's decoders raise whatever a broken file leads them to
            raise _unreadable(path, error) from error
        if image.size != (self.size, self.size):
            found, expected = "x".join(map(str, image.size)), f"{self.size}x{self.size}"
            raise UserError(f"{path} is {found} pixels, where the images must be {expected}: {self.fix}")
        return np.asarray(image).reshape(self.size, self.size, self.channels)


def _resized(image: Image.Image, shorter: int, size: int) -> Image.Image:
    """Shorter side to ``shorter`` pixels, then the square of ``size`` in the centre."""
    width, height = (max(shorter, round(side * shorter / min(image.size))) for side in image.size)
    image = image.resize((width, height), Image.Resampling.BICUBIC)
    left, top = (width - size) // 2, (height - size) // 2
    return image.crop((left, top, left + size, top + size))


def _shown(chunks: Iterator[None], images: int, count: int) -> Iterator[None]:
    """``chunks`` with a progress bar where there is time to look at one, in the first process
    only.
    """
    silent = images < _WORTH_A_BAR or getattr(rank_zero_only, "rank", 0) > 0
    console = Console(stderr=True)
    yield from track(chunks, f"Reading {images:,} images", count, console=console, transient=True, disable=silent)


def _unreadable(path: str, error: Exception) -> UserError:
    reason = " ".join(str(error).split()) or type(error).__name__
    return UserError(f"cannot read the image {path} ({reason}): replace or remove it")
