"""ImageNet's validation images (ILSVRC 2012, 50,000 photographs in 1,000 classes), or some of them,
for evaluation.
"""

from __future__ import annotations

from functools import cache

import torch
from timm.data import ImageNetInfo
from torch import Tensor

from robusttrain.core.checked import Count, checked
from robusttrain.core.errors import UserError
from robusttrain.core.preparation import Interpolation
from robusttrain.data.base import Facts, ImageData, SplitName, missing_data
from robusttrain.data.image_files import ImageFiles, preparation
from robusttrain.data.listing import Listing, subfolders
from robusttrain.data.notes import pasted, shown

_LAYOUT = "val/<wnid>/*.JPEG, wnid being n01440764 and the like"
_FIX = "sort the validation images into one folder for each class, and give --data.root DIR"


@checked
class ImageNet(ImageData):
    """ImageNet's validation images in ``val/<wnid>/``, as the test split.

    A class is a WordNet id, and its number is the id's place among ImageNet's 1,000 sorted ids.
    Folders may be empty or missing. Images are decoded when a batch needs them: memory does not
    grow with their number, and ``--images 100`` reads 100 of 50,000 files.

    Only evaluation is supported. ``ImageFolder`` with an ``image_size`` trains on
    ``train/<wnid>/``.

    Args:
        root: folder with ``val/``.
        batch_size: images of a batch, in each process.
        image_size: height and width in pixels of the square in the centre that is cropped.
        resize: pixels that the shorter side is resized to before the crop; by default
            ``image_size``. The usual 256 before a crop of 224 leaves a border out.
        seed: seed of orders.
        workers: processes that load batches; 0 loads them in the main process, in threads.
        interpolation: by which pictures are resized, antialiased: torchvision's weights are mostly
            evaluated on bilinear ones.
    """

    name = "imagenet"
    trains = False

    def __init__(
        self,
        root: str = "data/imagenet",
        batch_size: int = 20,
        image_size: Count = 224,
        resize: int | None = None,
        seed: int = 0,
        workers: int = 0,
        interpolation: Interpolation = "bicubic",
    ) -> None:
        super().__init__(
            root, batch_size, validation=0.0, crop=0, flip=False, seed=seed, workers=workers
        )
        self._side = image_size
        self.preparation = preparation(image_size, resize, interpolation)

    def facts(self) -> Facts:
        """1,000 classes, in colour, of the given size."""
        self._folders()
        return Facts(len(_wnids()), 3, self._side)

    def _read(self, split: SplitName) -> tuple[ImageFiles, Tensor, list[str]]:
        if split == "train":
            raise UserError(
                "--data imagenet is for evaluation only: to train on train/<wnid>/ of the same"
                " folder, give --data imagefolder"
                f" --data.root {pasted(self.root)} --data.image_size {self._side}"
            )
        number = {wnid: label for label, wnid in enumerate(_wnids())}
        listing = Listing(self.notes)
        labelled = [
            (path, number[wnid])
            for wnid in self._folders()
            for path in listing.images_in(self.root / "val" / wnid)
        ]
        if not labelled:
            raise missing_data("ImageNet images", self.root, _LAYOUT, _FIX)
        listing.tell()
        paths, labels = zip(*labelled, strict=True)
        names = [words.split(",")[0] for words in ImageNetInfo().label_descriptions()]
        files = ImageFiles(paths, self._side, preparation=self.preparation, notes=self.notes)
        return files, torch.tensor(labels), names

    def _folders(self) -> list[str]:
        """Sorted names of the existing class folders."""
        folder = self.root / "val"
        wnids = subfolders(folder) if folder.is_dir() else []
        if not wnids:
            raise missing_data("ImageNet images", self.root, _LAYOUT, _FIX)
        if unknown := sorted(set(wnids) - set(_wnids())):
            raise UserError(
                f"{shown(folder / unknown[0])} is no class of ImageNet: folders must have the names"
                " of its 1,000 WordNet ids (n01440764 ...); --data imagefolder reads folders of"
                " any name"
            )
        return wnids


@cache
def _wnids() -> list[str]:
    """The WordNet ids of ImageNet's 1,000 classes, sorted, which is their official order."""
    wnids: list[str] = ImageNetInfo().label_names()
    return wnids
