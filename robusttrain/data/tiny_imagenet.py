"""Tiny ImageNet: 110,000 photographs of 64 x 64 pixels in 200 classes (Stanford CS231n)."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from robusttrain.core.errors import UserError
from robusttrain.data.base import Facts, ImageData, SplitName, missing_data
from robusttrain.data.image_files import ImageFiles
from robusttrain.data.listing import Listing

_FIX = "get the official archive tiny-imagenet-200.zip, unpack it and give --data.root DIR"


class TinyImageNet(ImageData):
    """Tiny ImageNet, from its official archive tiny-imagenet-200.zip, unpacked.

    Its test labels were never published. As in the literature, its ``val/`` of 10,000 images is the
    test split, and validation images are held out from its 100,000 train images.

    Args:
        root: folder with ``wnids.txt``, ``train/`` and ``val/``, or with a ``tiny-imagenet-200/``
            that has them.
        batch_size: images of a batch, in each process.
        validation: share of the train split that is held out for validation.
        crop: width in pixels of the border of zeros for random crops in training; 0 for none.
        flip: whether to mirror half of the images in training.
        seed: seed of the validation split, of the order and of the augmentation.
        workers: processes that load batches; 0 loads them in the main process.
    """

    name = "tiny_imagenet"

    def __init__(
        self,
        root: str = "data/tiny_imagenet",
        batch_size: int = 128,
        validation: float = 0.1,
        crop: int = 8,
        flip: bool = True,
        seed: int = 0,
        workers: int = 0,
    ) -> None:
        super().__init__(root, batch_size, validation, crop, flip, seed, workers)

    def facts(self) -> Facts:
        """The classes of wnids.txt, 64 x 64 pixels in colour."""
        return Facts(len(self._wnids()), 3, 64)

    def _read(self, split: SplitName) -> tuple[Tensor, Tensor, list[str]]:
        wnids = self._wnids()
        labelled = self._train_files(wnids) if split == "train" else self._val_files(wnids)
        if not labelled:
            folder = "train/<wnid>/images/*.JPEG" if split == "train" else "val/val_annotations.txt"
            raise missing_data("Tiny ImageNet", self._folder(), folder, _FIX)
        words = {}
        if (self._folder() / "words.txt").is_file():
            words = dict(line.split("\t", 1) for line in self._lines("words.txt") if "\t" in line)
        paths = [path for path, _ in labelled]
        images = ImageFiles(paths, size=64, fix=_FIX, notes=self.notes).load()
        names = [words.get(wnid, wnid).split(",")[0] for wnid in wnids]
        return images, torch.tensor([label for _, label in labelled]), names

    def _train_files(self, wnids: list[str]) -> list[tuple[str, int]]:
        folders = [self._folder() / "train" / wnid / "images" for wnid in wnids]
        listing = Listing(self.notes)
        labelled = [
            (path, label)
            for label, folder in enumerate(folders)
            for path in listing.images_in(folder)
        ]
        listing.tell()
        return labelled

    def _val_files(self, wnids: list[str]) -> list[tuple[str, int]]:
        """Files and labels, from val_annotations.txt: file, class, and a bounding box, which is
        ignored.
        """
        labels = {wnid: label for label, wnid in enumerate(wnids)}
        labelled = []
        for number, line in enumerate(self._lines("val/val_annotations.txt"), 1):
            name, wnid, *_ = [*line.split("\t"), "", ""]
            if wnid not in labels:
                where = f"{self._folder()}/val/val_annotations.txt"
                raise UserError(f"line {number} of {where} has no class: {_FIX}")
            labelled.append((str(self._folder() / "val" / "images" / name), labels[wnid]))
        return labelled

    def _folder(self) -> Path:
        inner = self.root / "tiny-imagenet-200"
        return inner if inner.is_dir() else self.root

    def _wnids(self) -> list[str]:
        return self._lines("wnids.txt")

    def _lines(self, name: str) -> list[str]:
        path = self._folder() / name
        if not path.is_file():
            raise missing_data("Tiny ImageNet", self._folder(), name, _FIX)
        return path.read_text(encoding="utf-8", errors="replace").strip().splitlines()
