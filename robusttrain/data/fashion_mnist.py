"""Fashion-MNIST: 70,000 grey pictures of clothes in 10 classes (Xiao, Rasul & Vollgraf, 2017)."""

from __future__ import annotations

import gzip
import math
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
import torchvision.datasets
from torch import Tensor

from robusttrain.core.errors import UserError, at_least, first_line
from robusttrain.data.base import Facts, ImageData, SplitName, fetch, missing_data

_PREFIX: dict[SplitName, str] = {"train": "train", "test": "t10k"}


class FashionMNIST(ImageData):
    """Fashion-MNIST, 60,000 images to train and 10,000 to test, from its IDX files.

    Args:
        root: folder with ``train-images-idx3-ubyte`` and the others, as they are or as ``.gz``, or
            with torchvision's ``FashionMNIST/raw/``, or a folder to download to.
        batch_size: images of a batch, in each process.
        validation: share of the train split that is held out for validation.
        crop: width in pixels of the border of zeros for random crops in training; 0 for none.
        flip: whether to mirror half of the images in training.
        image_size: height and width in pixels, at least the original 28, reached by a border of
            zeros.
        download: whether to download the files if they are missing.
        seed: seed of the validation split, of the order and of the augmentation.
        workers: processes that load batches; 0 loads them in the main process.
    """

    name = "fashion_mnist"

    def __init__(
        self,
        root: str = "data/fashion_mnist",
        batch_size: int = 128,
        validation: float = 0.1,
        crop: int = 2,
        flip: bool = True,
        image_size: int = 32,
        download: bool = True,
        seed: int = 0,
        workers: int = 0,
    ) -> None:
        super().__init__(root, batch_size, validation, crop, flip, seed, workers)
        at_least("image_size", image_size, 28)
        self.image_size, self.download = image_size, download

    def prepare_data(self) -> None:
        """Download, if wanted and needed."""
        if self.download and self._missing() is not None:
            fetch(
                "Fashion-MNIST",
                self.root,
                lambda: torchvision.datasets.FashionMNIST(str(self.root), download=True),
            )

    def facts(self) -> Facts:
        """Ten grey classes."""
        missing = self._missing()
        if missing is not None and not self.download:
            raise missing
        return Facts(10, 1, self.image_size)

    def _read(self, split: SplitName) -> tuple[Tensor, Tensor, list[str]]:
        images = _read_idx(self._find(f"{_PREFIX[split]}-images-idx3-ubyte"), dimensions=3)
        path = self._find(f"{_PREFIX[split]}-labels-idx1-ubyte")
        labels = _read_idx(path, dimensions=1).long()
        if len(images) != len(labels) or images.shape[1:] != (28, 28) or labels.max() > 9:
            raise UserError(f"{path} and its images are not those of Fashion-MNIST: get them again")
        before = (self.image_size - 28) // 2
        after = self.image_size - 28 - before
        names = list(torchvision.datasets.FashionMNIST.classes)
        return F.pad(images[:, None], [before, after, before, after]), labels, names

    def _find(self, name: str) -> Path:
        folders = (self.root, self.root / "FashionMNIST" / "raw")
        for path in (folder / file for folder in folders for file in (name, name + ".gz")):
            if path.is_file():
                return path
        fix = "give --data.root DIR, or --data.download true"
        raise missing_data("Fashion-MNIST", self.root, f"{name} or {name}.gz", fix)

    def _missing(self) -> UserError | None:
        try:
            for prefix in _PREFIX.values():
                self._find(f"{prefix}-images-idx3-ubyte")
                self._find(f"{prefix}-labels-idx1-ubyte")
        except UserError as error:
            return error
        return None


def _read_idx(path: Path, dimensions: int) -> Tensor:
    """The uint8 array of an IDX file, which holds two zero bytes, a type, the number of dimensions,
    their sizes, and the content.
    """
    try:
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
            header = np.frombuffer(file.read(4 + 4 * dimensions), ">u4")
            shape = [int(size) for size in header[1:]]
            # The limit protects memory from a file that lies about its size, or unpacks to much
            # more.
            if header[0] != 0x800 + dimensions or not 0 < math.prod(shape) < 1 << 30:
                raise ValueError("not an IDX file of this kind")
            content = np.frombuffer(bytearray(file.read(math.prod(shape))), np.uint8)
            return torch.from_numpy(content.reshape(shape))
    except (OSError, EOFError, ValueError, IndexError) as error:
        raise UserError(f"cannot read {path} ({first_line(error)}): get it again") from error
