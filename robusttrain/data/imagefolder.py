"""Any data set that lies on disk as one folder of images for each class."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from robusttrain.data.base import Facts, ImageData, SplitName, missing_data
from robusttrain.data.image_files import ImageFiles, images_in, size_of, subfolders
from robusttrain.core.errors import OptionError, UserError, at_least

_FOLDERS: dict[SplitName, tuple[str, ...]] = {"train": ("train",), "test": ("test", "val")}
_RESIZE = "give --data.image_size N to resize all of them"


class ImageFolder(ImageData):
    """Images in ``train/<class>/`` and ``test/<class>/`` (or ``val/<class>/``).

    A class is a folder, and its number is that of its name among the sorted names of the folders of
    ``train/`` (of the test split, where there is no ``train/``); folders may be empty.

    Args:
        root: folder with ``train/`` and ``test/`` or ``val/``. One of them is enough to train or to
            evaluate.
        batch_size: images of a batch, in each process.
        validation: share of the train split that is held out for validation.
        crop: width in pixels of the border of zeros for random crops in training; 0 for none.
        flip: whether to mirror half of the images in training.
        image_size: height and width in pixels: the shorter side is resized to it and the centre is
            cropped. By default the images stay as they are, and must all be squares of one size.
        channels: 3 for colour, 1 for grey; images of the other kind are converted.
        memory_limit_gib: a split that would take more memory than this is not held there, but
            decoded batch by batch (``workers`` do that side by side).
        seed: seed of the validation split, of the order and of the augmentation.
        workers: processes that load batches; 0 loads them in the main process.
    """

    name = "imagefolder"

    def __init__(
        self,
        root: str = "data/imagefolder",
        batch_size: int = 128,
        validation: float = 0.1,
        crop: int = 4,
        flip: bool = True,
        image_size: int | None = None,
        channels: int = 3,
        memory_limit_gib: float = 4.0,
        seed: int = 0,
        workers: int = 0,
    ) -> None:
        super().__init__(root, batch_size, validation, crop, flip, seed, workers)
        at_least("memory_limit_gib", memory_limit_gib, 0)
        if image_size is not None:
            at_least("image_size", image_size, 1)
        if channels not in (1, 3):
            raise OptionError("channels", channels, "must be 1 or 3")
        self.channels = channels
        self._resize_to, self._memory_limit = image_size, memory_limit_gib * 2**30

    def facts(self) -> Facts:
        """Classes by counting folders, the size from the first image unless it is given."""
        folder, classes = self._classes()
        return Facts(len(classes), self.channels, self._resize_to or self._size_in(folder, classes))

    def _read(self, split: SplitName) -> tuple[Tensor | ImageFiles, Tensor, list[str]]:
        folder = self._folder(split)
        first, classes = self._classes()
        unknown = sorted(set(subfolders(folder)) - set(classes))
        if unknown:
            raise UserError(f"{folder / unknown[0]} is a class that {first} does not have: add it there or remove it")
        paths = [images_in(folder / name) for name in classes]
        labels = torch.arange(len(classes)).repeat_interleave(torch.tensor([len(files) for files in paths]))
        if not len(labels):
            raise self._no_image(folder)
        size = self._resize_to or self._size_in(first, classes)
        flat = [path for files in paths for path in files]
        files = ImageFiles(flat, size, self.channels, self._resize_to, _RESIZE)
        return files.load() if files.nbytes <= self._memory_limit else files, labels, classes

    def _folder(self, split: SplitName) -> Path:
        names = _FOLDERS[split]
        for name in names:
            if (self.root / name).is_dir():
                return self.root / name
        looked_for = " or ".join(f"{name}/<class>/" for name in names)
        raise missing_data(f"{split} images", self.root, looked_for, "give --data.root DIR")

    def _classes(self) -> tuple[Path, list[str]]:
        """The folder that says which classes there are, and their names."""
        for name in (*_FOLDERS["train"], *_FOLDERS["test"]):
            folder = self.root / name
            if folder.is_dir() and (classes := subfolders(folder)):
                return folder, classes
        raise missing_data("images", self.root, "train/<class>/, test/<class>/ or val/<class>/", "give --data.root DIR")

    def _size_in(self, folder: Path, classes: list[str]) -> int:
        path = next((files[0] for name in classes if (files := images_in(folder / name))), None)
        if path is None:
            raise self._no_image(folder)
        width, height = size_of(path)
        if width != height:
            raise UserError(f"{path} is {width}x{height} pixels, where the images must be squares: {_RESIZE}")
        return width

    def _no_image(self, folder: Path) -> UserError:
        return missing_data("image", folder, "<class>/*.jpg, .png and the like", "give --data.root DIR")
