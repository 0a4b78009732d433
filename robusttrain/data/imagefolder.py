"""Any data set that lies on disk as one folder of images for each class."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from robusttrain.core.checked import NonNegative, checked
from robusttrain.core.errors import UserError
from robusttrain.core.preparation import Interpolation
from robusttrain.data.base import Facts, ImageData, SplitName, missing_data
from robusttrain.data.checking import same_order
from robusttrain.data.class_order import (
    RENAME,
    by_name,
    class_name,
    fitting,
    numbered,
    numbering,
    read_order,
)
from robusttrain.data.image_files import (
    RESIZE,
    ImageFiles,
    check_pictures,
    faster_in_memory,
    preparation,
    side_of,
)
from robusttrain.data.listing import Listing, subfolders
from robusttrain.data.notes import note, pasted, shown

logger = logging.getLogger(__name__)

#: Names that hold a split, of which the first that is there is taken.
NAMES: dict[SplitName, tuple[str, ...]] = {
    "train": ("train",),
    "test": ("test", "val", "valid", "validation"),
}
#: Names of folders, in any case, that make their parent a data set of splits.
SPLITS = {name for names in NAMES.values() for name in names}
_FIX = "give --data.root DIR"


@checked
class ImageFolder(ImageData):
    """Images in ``train/<class>/`` and ``test/<class>/`` (or ``val/<class>/``).

    A class is a folder. Its number is the place of its name among the sorted names of the folders
    of ``train/``, or of the test split if there is no ``train/``. Names that are all numbers sort
    as numbers. ``classes`` gives another order, and so does the checkpoint that is evaluated.
    Folders may be empty; folders inside a class folder belong to its class. Decisions about files
    (`robusttrain.data.decoding.Remark`) are logged, and stand in ``notes``.

    Args:
        root: folder with ``train/`` and ``test/`` or ``val/``. To train, ``train/`` is enough; to
            evaluate, the other one, or the class folders themselves.
        batch_size: images of a batch, in each process.
        validation: share of the train split that is held out for validation.
        crop: width in pixels of the border of zeros for random crops in training; 0 for none.
        flip: whether to mirror half of the images in training.
        image_size: height and width in pixels; the shorter side is resized to this length and the
            centre is cropped. By default images stay as they are, and must be squares of one size.
        channels: 3 for colour, 1 for grey; images of the other kind are converted.
        classes: file with the order of the classes: one folder name a line, or a JSON or YAML list
            or mapping to numbers; classes without a folder count as well.
        white: value of white in grey images of more than 8 bits; by default the format's own: 65535
            for 16 bits, 1 for floats.
        memory_limit_gib: a split that would take more memory than this is decoded batch by batch,
            by the ``workers`` side by side.
        seed: seed of the validation split, of the order and of the augmentation.
        workers: processes that load batches; 0 loads them in the main process.
        resize: with ``image_size``, pixels that the shorter side is resized to instead, before the
            centre is cropped: 256 before a crop of 224 leaves a border out.
        interpolation: by which pictures are resized, antialiased: torchvision's weights are mostly
            evaluated on bilinear ones.
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
        classes: str | None = None,
        white: float | None = None,
        memory_limit_gib: NonNegative = 4.0,
        seed: int = 0,
        workers: int = 0,
        resize: int | None = None,
        interpolation: Interpolation = "bicubic",
    ) -> None:
        super().__init__(root, batch_size, validation, crop, flip, seed, workers)
        check_pictures(image_size, channels, white)
        self.preparation = preparation(image_size, resize, interpolation)
        self.channels = channels
        self._resize_to, self._memory_limit = image_size, memory_limit_gib * 2**30
        self._classes_file, self._white = classes, white
        self._checkpoints: list[str] | None = None
        self._size: int | None = None

    @property
    def faster_loading(self) -> str:
        images = self._train.images if self._train is not None else None
        return f"{super().faster_loading}{faster_in_memory(images)}"

    def number_as(self, classes: Sequence[str]) -> None:
        """Number classes as a checkpoint does, if it has all folders as classes and no file gives
        another order.
        """
        self._checkpoints = list(classes)
        if self._train is not None or self._test is not None:
            super().number_as(classes)

    def facts(self) -> Facts:
        """The number of class folders, and the given size or that of the first image."""
        folder, _ = self._first()
        size = self._resize_to or self._size_in(folder)
        return Facts(len(self._classes()[0]), self.channels, size)

    def _read(self, split: SplitName) -> tuple[Tensor | ImageFiles, Tensor, list[str]]:
        folder, (first, _) = self._folder(split), self._first()
        classes, how = self._classes()
        folders = _by_class(folder)
        if unknown := sorted(set(folders) - set(classes)):
            where = shown(folder / unknown[0])
            raise UserError(
                f"{where} is a class that {shown(first)} does not have: add it there or remove it"
            )
        logger.info("%s", numbering(classes, how))
        listing = Listing(self.notes)
        paths = [
            [path for each in folders.get(name, ()) for path in listing.images_in(each)]
            for name in classes
        ]
        counts = torch.tensor([len(files) for files in paths])
        labels = torch.arange(len(classes)).repeat_interleave(counts)
        if not len(labels):
            raise self._no_image(folder)
        self._tell(
            folder, listing, [name for name, files in zip(classes, paths, strict=True) if not files]
        )
        size = self._resize_to or self._size_in(first)
        flat = [path for files in paths for path in files]
        files = ImageFiles(
            flat, size, self.channels, self.preparation, RESIZE, self._white, self.notes
        )
        return files.load() if files.nbytes <= self._memory_limit else files, labels, classes

    def _tell(self, folder: Path, listing: Listing, empty: list[str]) -> None:
        """Note files that are not read, classes without images, and the choice of a test split."""
        listing.tell()
        if loose := listing.loose(folder):
            note(
                self.notes,
                f"passed over as images in no class folder: {len(loose):,}; the first:"
                f" {shown(loose[0])}",
            )
        if empty:
            names = ", ".join(empty[:5]) + (" ..." if len(empty) > 5 else "")
            note(self.notes, f"classes without an image in {shown(folder)}: {len(empty)} ({names})")
        beside = [each for each in self._named("test") if each != folder]
        if folder in self._named("test") and beside:
            note(self.notes, f"{shown(folder)} is the test split; {shown(beside[0])} is not read")
        if folder == self.root:
            note(
                self.notes,
                f"{shown(folder)} has no train/, test/ or val/: its class folders are the test"
                " split",
            )

    def _named(self, split: SplitName) -> list[Path]:
        """Folders of a split: folders with one of its names that have folders inside."""
        if not self.root.is_dir():
            return []
        there = {name.lower(): self.root / name for name in subfolders(self.root)}
        return [there[name] for name in NAMES[split] if name in there and subfolders(there[name])]

    def _bare(self) -> bool:
        """Whether the root itself holds the class folders."""
        if not self.root.is_dir() or self._named("train") or self._named("test"):
            return False
        there = subfolders(self.root)
        for name in there:
            if {inner.lower() for inner in subfolders(self.root / name)} & SPLITS:
                fix = f"give --data.root {pasted(self.root / name)}"
                raise missing_data("class folders", self.root, "train/, test/ or val/", fix)
        return bool({name.lower() for name in there} - SPLITS)

    def _folder(self, split: SplitName) -> Path:
        if named := self._named(split):
            return named[0]
        looked_for = " or ".join(f"{name}/<class>/" for name in NAMES[split][:2])
        if not self._bare():
            raise missing_data(f"{split} images", self.root, looked_for, _FIX)
        if split == "train":
            fix = "class folders without a split are test images: move those to train on there"
            raise missing_data("train images", self.root, looked_for, fix)
        return self.root

    def _first(self) -> tuple[Path, list[str]]:
        """The folder whose folders are the classes, and the names of the classes in order."""
        folders = [*self._named("train"), *self._named("test")]
        if not folders and self._bare():
            folders = [self.root]
        if not folders:
            looked_for = "train/<class>/, test/<class>/ or val/<class>/, or <class>/ itself"
            loose = Listing([])
            for folder in (self.root, *(self.root / name for name in sorted(SPLITS))):
                if folder.is_dir() and (images := loose.loose(folder)):
                    fix = f"sort the images there ({len(images)}) into one folder a class"
                    raise missing_data("class folders", folder, looked_for, fix)
            raise missing_data("images", self.root, looked_for, _FIX)
        return folders[0], numbered([*_by_class(folders[0])])

    def _classes(self) -> tuple[list[str], str]:
        """The names of the classes in the order of their numbers, and the origin of the order."""
        folder, names = self._first()
        if self._classes_file is not None:
            order = read_order(self._classes_file)
            fitting(names, order, f"--data.classes {self._classes_file}", "folder")
            return order, f"by --data.classes {self._classes_file}"
        if self._checkpoints is not None and set(names) <= set(self._checkpoints):
            return self._checkpoints, "as in the checkpoint"
        if self._checkpoints is not None and len(names) == len(self._checkpoints):
            same_order(names, self._checkpoints, shown(folder), self.notes, RENAME)
            how = f"{by_name(names)}, since the checkpoint has other names"
            return names, f"{how} ({', '.join(self._checkpoints[:3])} ...)"
        if len(names) == 1:
            self._refuse_one_level_above(folder, names[0])
        elif self._checkpoints is not None:
            unknown = next(name for name in names if name not in set(self._checkpoints))
            theirs = ", ".join(map(repr, self._checkpoints[:5]))
            raise UserError(
                f"the folder {unknown!r} is no class of the checkpoint, which has"
                f" {len(self._checkpoints)} classes ({theirs}"
                f"{' ...' if len(self._checkpoints) > 5 else ''}), and {shown(folder)} has"
                f" {len(names)} folders: rename or remove it, or give the checkpoint's classes in"
                " their order, by the names of the folders, with --data.classes FILE"
            )
        return names, by_name(names)

    def _refuse_one_level_above(self, folder: Path, name: str) -> None:
        """Raise UserError where the only class folder holds no images, but the folders of classes
        further inside.
        """
        inside = folder / _by_class(folder)[name][0].name
        while not Listing([]).loose(inside) and (there := subfolders(inside)):
            if len(there) > 1:
                fix = f"give --data.root {pasted(inside)}"
                if folder != self.root:
                    fix = f"move the folders in {shown(inside)} to {shown(folder)}"
                raise missing_data("class folders", folder, "two of them or more", fix)
            inside = inside / there[0]

    def _size_in(self, folder: Path) -> int:
        """Height and width of the first image, which is looked for once."""
        self._size = self._size or self._look_for_size(folder)
        return self._size

    def _look_for_size(self, folder: Path) -> int:
        listing, folders = Listing([]), _by_class(folder)
        there = (folders[name] for name in numbered([*folders]))
        files = (listing.images_in(each) for several in there for each in several)
        path = next((paths[0] for paths in files if paths), None)
        if path is None:
            raise self._no_image(folder)
        return side_of(path)

    def _no_image(self, folder: Path) -> UserError:
        return missing_data("image", folder, "<class>/*.jpg, .png and the like", _FIX)


def _by_class(folder: Path) -> dict[str, list[Path]]:
    """The folders of each class, by its name: several if they write an accent differently."""
    folders: dict[str, list[Path]] = {}
    for name in subfolders(folder):
        folders.setdefault(class_name(name), []).append(folder / name)
    return folders
