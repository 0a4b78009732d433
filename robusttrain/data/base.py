"""The data module that all data sets share: splits, loaders, and augmentation on the device."""

from __future__ import annotations

import copy
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from http.client import HTTPException
from pathlib import Path
from typing import Any, Literal

import torch
from pytorch_lightning import LightningDataModule
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, SequentialSampler

from robusttrain.core.checked import Count, Whole, checked
from robusttrain.core.errors import OptionError, UserError, at_least, within
from robusttrain.core.in_float32 import InFloat32
from robusttrain.core.preparation import Preparation
from robusttrain.core.rng import Rng
from robusttrain.data.augment import crop_and_flip
from robusttrain.data.batches import (
    ATTACKED,
    Batch,
    EpochBatches,
    Split,
    TimedLoader,
    loader,
    seeded_order,
)
from robusttrain.data.checking import (
    Facts,
    checked_facts,
    checked_split,
    same_classes,
    same_order,
)
from robusttrain.data.extra import Joined, MixedBatches, Replayed
from robusttrain.data.image_files import ImageFiles
from robusttrain.data.notes import note, shown
from robusttrain.storage.libraries import is_theirs
from robusttrain.storage.raised import told

__all__ = ["Batch", "Facts", "ImageData", "SplitName", "as_float", "fetch", "missing_data"]

SplitName = Literal["train", "test"]


def missing_data(what: str, root: Path, looked_for: str, fix: str) -> UserError:
    """The error for missing data: what was looked for, where, and what to do."""
    return UserError(f"no {what} in {shown(root.absolute())} (looked for {looked_for}): {fix}")


def fetch(what: str, root: Path, download: Callable[[], object]) -> None:
    """Run ``download``; a UserError if it fails."""
    try:
        download()
    except (OSError, RuntimeError, HTTPException) as error:
        fix = "give the folder that has it with --data.root DIR --data.download false"
        reason = " ".join(str(error).split())
        raise UserError(f"cannot download {what} to {root.absolute()} ({reason}): {fix}") from error


def as_float(images: Tensor, layout: torch.memory_format = torch.channels_last) -> Tensor:
    """uint8 images as float32 in [0, 1], by default with channels last in memory.

    Float images keep their values and their type; bools become 0 and 1.
    """
    if images.is_floating_point():
        return images.to(memory_format=layout, copy=True)
    if images.dtype == torch.bool:
        return images.to(torch.float32, memory_format=layout)
    return images.to(torch.float32, memory_format=layout).div_(255)


def _for_python(batch: Batch) -> Batch:
    """The batch with contiguous float images, which other people's code expects."""
    return batch._replace(images=as_float(batch.images, torch.contiguous_format))


@checked
class ImageData(LightningDataModule, ABC):
    """Images in memory, for training, validation and test.

    Training and validation images come from the train split alone. Only ``setup("test")`` reads the
    test split, unless `attack_validation` puts the validation images in its place. ``setup`` sets
    ``num_classes``, ``channels``, ``image_size`` (pixels) and ``class_names``, and adds to
    ``notes``: lines on what was assumed of the files.

    Args:
        root: folder with the data.
        batch_size: images of a batch, in each process.
        validation: share of the train split that is held out for validation.
        crop: width in pixels of the border of zeros for random crops in training; 0 for none.
        flip: whether to mirror half of the images in training.
        seed: seed of the validation split, of the order and of the augmentation.
        workers: processes that load batches; 0 loads them in the main process.
    """

    name: str
    #: Whether there are images to train on, also for an attacker.
    trains: bool = True
    #: How pictures of any size become images; None where they are images already.
    preparation: Preparation | None = None
    num_classes: int
    channels: int
    image_size: int
    class_names: list[str]

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        if "facts" in vars(cls) and is_theirs(cls.__module__):
            cls.facts = checked_facts(cls.facts)  # type: ignore[method-assign]

    def __init__(
        self,
        root: str,
        batch_size: Count,
        validation: float,
        crop: Whole,
        flip: bool,
        seed: int,
        workers: Whole,
    ) -> None:
        super().__init__()
        within("validation", validation, 0, 0.99)
        self.root = Path(root).expanduser()
        self.batch_size, self.validation, self.seed, self.workers = (
            batch_size,
            validation,
            seed,
            workers,
        )
        self.crop, self.flip = crop, flip
        self._train: Split | None = None
        self._validation: Split | None = None
        self._test: Split | None = None
        self._test_limit: tuple[int, int, bool] | None = None
        #: Which images an evaluation attacks.
        self.attacked: Literal["test", "validation"] = "test"
        self._first_batch: Batch | None = None
        self._extra: tuple[Split, float] | None = None
        self.notes: list[str] = []
        #: The names of the classes in the order of a checkpoint's numbers, once `number_as` said
        #: them.
        self._numbered_as: list[str] | None = None
        #: How many times in a row each training batch comes (free adversarial training).
        self.replays = 1
        #: Seconds that the host has spent on augmentation and conversion of training batches.
        self.augmenting = 0.0

    @abstractmethod
    def facts(self) -> Facts:
        """Classes, channels and image size, without reading the images; a UserError if the data are
        missing.
        """

    @abstractmethod
    def _read(self, split: SplitName) -> tuple[Tensor | ImageFiles, Tensor, list[str]]:
        """Images (N, C, H, W) uint8, labels (N,) int64 and class names of one split."""

    def setup(self, stage: str | None = None) -> None:
        """Read the splits that ``stage`` needs and that were not read yet.

        Stages are "fit", "validate", "test", and None for all.
        """
        self.num_classes, self.channels, self.image_size = self.facts()
        if stage in (None, "fit", "validate") and self._train is None:
            images, labels, names = self._checked("train")
            self._name_classes(names, "train")
            # At least one image on either side, if there are two.
            held_out = min(
                max(round(self.validation * len(labels)), self.validation > 0), len(labels) - 1
            )
            order = seeded_order(len(labels), self.seed, "validation")
            self._validation = Split(images, labels, order[:held_out].sort().values)
            self._train = self._validation.only(order[held_out:].sort().values)
        if stage in (None, "test") and self._test is None and self.attacked == "validation":
            self.setup("validate")
            self._test = _some(_ready(self._validation, "validate"), self.validation)
            self._limited_test()
        if stage in (None, "test") and self._test is None:
            images, labels, names = self._checked("test")
            self._name_classes(names, "test")
            self._test = Split(images, labels)
            self._limited_test()

    def _checked(self, split: SplitName) -> tuple[Tensor | ImageFiles, Tensor, list[str]]:
        """What `_read` gives of a split; a UserError if that does not go together."""
        who = type(self).__name__
        with told(f"data: {who}._read({split!r})", type(self)):
            read = self._read(split)
        return checked_split(read, *(who, split, self.num_classes, self.channels, self.image_size))

    def _name_classes(self, names: list[str], split: SplitName) -> None:
        """Take the names of the classes that a split has.

        Raises:
            UserError: they are numbered otherwise than in the split that was read before, or in the
                checkpoint: every image would be judged by the number of another class.
        """
        here = f"data: {type(self).__name__}._read({split!r})"
        if self._train is not None or self._test is not None:
            same_classes(names, self.class_names, here)
        if (theirs := self._numbered_as) is not None:
            same_order(names, theirs, here, self.notes)
        self.class_names = names

    def number_as(self, classes: Sequence[str]) -> None:
        """Number classes as a checkpoint does, which gives their names in order.

        Data sets with fixed numbers refuse the same names in another order: when they are read, or
        now, where they were.

        Raises:
            UserError: the data set was read, and numbers the same classes otherwise.
        """
        self._numbered_as = list(classes)
        if self._train is not None or self._test is not None:
            same_order(self.class_names, classes, f"data: {type(self).__name__}", self.notes)

    def limit_test(self, count: int, seed: int, at_most: bool = False) -> None:
        """Restrict the test loader to ``count`` images, chosen by ``seed``; a larger choice
        contains the smaller. If there are fewer images, ``at_most`` takes all, with a note.
        """
        at_least("images", count, 1)
        self._test_limit, self._first_batch = (count, seed, at_most), None
        if self._test is not None:
            self._limited_test()

    def attack_validation(self) -> None:
        """Have evaluations take the validation images: what is chosen by them leaves the test split
        unseen. To be called before ``setup``.

        Which images these are follows from ``validation`` and ``seed``, as in training.
        """
        self.attacked = "validation"

    def add_extra(self, other: ImageData, share: float) -> int:
        """Fill every training batch up with training images of another data set.

        Returns the number of its training images.

        Args:
            other: the other data set, with images of the same shape. Classes are matched by name.
                Its held-out images, if any, stay out.
            share: the other's share of every batch; an epoch stays one pass over the own images.

        Raises:
            OptionError: the share leaves one of the two data sets without an image in a batch.
            UserError: the other data set has other classes or another shape.
        """
        theirs = round(share * self.batch_size)
        if not 0 < theirs < self.batch_size:
            raise OptionError(
                "share", share, f"both data sets need an image in a batch of {self.batch_size}"
            )
        ours, others = self.facts(), other.facts()
        if (ours.channels, ours.image_size) != (others.channels, others.image_size):
            shapes = (
                f"{each.channels} x {each.image_size} x {each.image_size}"
                for each in (others, ours)
            )
            raise UserError(
                "--extra.root: its images are {}, the data set's are {}".format(*shapes)
            )
        self.setup("fit")
        other.setup("fit")
        unknown = [name for name in other.class_names if name not in self.class_names]
        if unknown:
            raise UserError(
                f"--extra.root: the data set has no class {unknown[0]!r}: it has {self.class_names}"
            )
        split = _ready(other._train, "fit")
        numbers = torch.tensor([self.class_names.index(name) for name in other.class_names])
        self._extra = (Split(split.images, numbers[split.labels], split.subset), share)
        return len(split)

    def origin(self) -> dict[str, Tensor]:
        """The train split as it was read, held-out images among them
        (`robusttrain.data.batches.Split.origin`): where it changes, so does what is held out.
        """
        return _ready(self._train, "fit").origin()

    def further(self) -> dict[str, Tensor]:
        """`origin` of the images of ``add_extra``; empty where there are none."""
        return {} if self._extra is None else self._extra[0].origin()

    def alone(self) -> ImageData:
        """The same data set without the additions of a recipe: no images of ``add_extra``, every
        batch once.
        """
        data = copy.copy(self)
        data._extra, data.replays = None, 1
        return data

    def train_dataloader(self) -> DataLoader[Batch]:
        """Full batches in a new order every epoch, with images of ``add_extra``, each ``replays``
        times.
        """
        # Lightning's overfit_batches asks for the same few batches in every epoch.
        overfit = self.trainer is not None and getattr(self.trainer, "overfit_batches", 0) > 0
        split = _ready(self._train, "fit")
        if overfit:  # shuffled once, since a data set may sort its images by class
            split = split.only(split.subset[seeded_order(len(split), self.seed, "overfit order")])
        theirs = round(self._extra[1] * self.batch_size) if self._extra else 0
        own = self._batches(
            len(split), self.batch_size - theirs, shuffle=not overfit, drop_last=True
        )
        if self._extra is None:
            return self._loaded(split, Replayed(own, self.replays) if self.replays > 1 else own)
        mixed = MixedBatches(own, len(split), len(self._extra[0]), theirs)
        batches = Replayed(mixed, self.replays) if self.replays > 1 else mixed
        return self._loaded(Joined(split, self._extra[0]), batches)

    def val_dataloader(self) -> DataLoader[Batch]:
        """Every validation image once, in an order that the seed chooses, so that a few batches
        hold all classes.
        """
        split = _ready(self._validation, "fit")
        return self._loader(
            split.only(split.subset[seeded_order(len(split), self.seed, "validation order")])
        )

    def test_dataloader(self) -> DataLoader[Batch]:
        """Every test image once, or those of ``limit_test``."""
        return self._loader(self._limited_test())

    def test_share(self, rank: int) -> tuple[Split, list[Tensor]]:
        """The test images, and the positions of each batch that process ``rank`` gets of them."""
        split = self._limited_test()
        batches = self._batches(len(split), self.batch_size)
        batches.rank = rank
        return split, [*batches]

    def first_test_batch(self) -> Batch:
        """The first batch of the test loader, as evaluations get it; read once."""
        if self._first_batch is None:
            batch = next(iter(self.test_dataloader()))
            self._first_batch = self.on_after_batch_transfer(batch, 0)
        return self._first_batch

    def validation_images(self, count: int) -> Batch:
        """``count`` validation images chosen by the seed, or all if there are fewer, as contiguous
        float32 in [0, 1].
        """
        at_least("count", count, 1)
        split = _some(_ready(self._validation, "fit"), self.validation)
        batch = split[seeded_order(len(split), self.seed, "validation images")[:count]]
        return _for_python(batch)

    def unaugmented(self, split: SplitName, count: int) -> Batch:
        """``count`` training or test images chosen by the seed, or all if there are fewer, as
        float32 in [0, 1].
        """
        at_least("count", count, 1)
        chosen = _ready(self._train, "fit") if split == "train" else _ready(self._test, "test")
        batch = chosen[seeded_order(len(chosen), self.seed, f"{split} images")[:count]]
        return _for_python(batch)

    def test_images(self, indices: Tensor) -> Batch:
        """The test images with these indices in the whole split, (B,) int64, as float32 in [0, 1],
        in this order. (Of validation images, indices in the train split.)
        """
        batch = _ready(self._test, "test").at(indices)
        return _for_python(batch)

    def on_after_batch_transfer(self, batch: Batch, dataloader_idx: int) -> Batch:
        """Float images in [0, 1] on the device, augmented in training.

        They are in float32; in a Trainer of the user's own with weights in another type
        (``precision="bf16-true"``) in that one, which Lightning gave the batch before its bytes
        became numbers. An `InFloat32` gets float32 there, too.
        """
        images, start = batch.images, time.perf_counter()
        training = self.trainer is not None and self.trainer.training
        if training:
            assert self.trainer is not None
            rng = (
                Rng.for_images(self.seed, batch.indices)
                .fold("augment")
                .fold(self.trainer.current_epoch)
            )
            images = crop_and_flip(images, rng, self.crop, self.flip)
        images = as_float(images)
        if self.trainer is not None:
            module = self.trainer.lightning_module
            if not isinstance(module, InFloat32):
                images = self.trainer.precision_plugin.convert_input(images)
        if training:
            self.augmenting += time.perf_counter() - start
        return batch._replace(images=images)

    @property
    def faster_loading(self) -> str:
        """Options that make loading faster, for a user whose training waits for it."""
        more = "--data.workers 2 loads beside the training"
        if self.workers:
            more = f"more --data.workers than {self.workers} load more batches at once"
        in_memory = self._train is not None and isinstance(self._train.images, Tensor)
        if in_memory and self.workers:
            return "the images are in memory, where --data.workers 0 may be faster"
        return more

    def _limited_test(self) -> Split:
        test = _ready(self._test, "test")
        if self._test_limit is None:
            return test
        count, seed, at_most = self._test_limit
        if count > len(test) and at_most:
            wanted = f"{count} images were to be attacked, and the {self.attacked} split has"
            wanted = f"{wanted} {len(test)}"
            note(self.notes, f"{wanted}: all of them are")
        elif count > len(test):
            raise OptionError("images", count, f"the {self.attacked} split has {len(test)} images")
        chosen = seeded_order(len(test), seed, ATTACKED)[:count]
        return test.only(test.subset[chosen].sort().values)

    def _batches(
        self, count: int, size: int, shuffle: bool = False, drop_last: bool = False
    ) -> EpochBatches:
        rank, world = (
            (self.trainer.global_rank, self.trainer.world_size)
            if self.trainer is not None
            else (0, 1)
        )
        return EpochBatches(count, size, shuffle, self.seed, rank, world, drop_last)

    def _loader(self, split: Split) -> DataLoader[Batch]:
        return self._loaded(split, self._batches(len(split), self.batch_size))

    def _loaded(self, split: Dataset[Batch], batches: SequentialSampler) -> TimedLoader:
        """A loader for the trainer's device: pinned memory serves a GPU, and costs a CPU time."""
        device = self.trainer.strategy.root_device if self.trainer is not None else None
        return loader(split, batches, self.workers, device is not None and device.type == "cuda")


def _some(split: Split, share: float) -> Split:
    """The validation images, if there are any."""
    if not len(split):
        fix = "must be above 0 where validation images are needed"
        raise OptionError("validation", share, fix)
    return split


def _ready(split: Split | None, stage: str) -> Split:
    if split is None:
        raise RuntimeError(f'call setup("{stage}") first')
    return split
