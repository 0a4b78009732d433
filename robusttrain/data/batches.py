"""Whole batches by indexing: a batch, the images of a split, and their order."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, SequentialSampler

from robusttrain.core.rng import Rng
from robusttrain.data.image_files import ImageFiles

#: The purpose of `seeded_order` for the images that are attacked.
ATTACKED = "test images"
#: About how many files are read to tell a folder from another.
_SOME = 1000


class Batch(NamedTuple):
    """Some images of a split.

    Attributes:
        images: (B, C, H, W), contiguous uint8 as they leave the loader, float32 in [0, 1] once
            they are on the device.
        labels: (B,) int64.
        indices: (B,) int64, the index of each image in its split as it was read. The index stays
            with the image: validation images keep their index in the train split, and a subset of
            the test split keeps the test indices.
    """

    images: Tensor
    labels: Tensor
    indices: Tensor


def seeded_order(count: int, seed: int, purpose: str, epoch: int = 0) -> Tensor:
    """(count,) int64: a permutation of 0..count-1, a function of the arguments and of no global
    state.
    """
    # The keys are distinct 64-bit numbers, so sorting them gives a permutation without ties.
    return Rng.for_images(seed, torch.arange(count)).fold(purpose).fold(epoch).keys.argsort()


class Split(Dataset[Batch]):
    """Images of one split, or a subset of them; indexing with positions gives a whole batch.

    Args:
        images: (N, C, H, W) uint8, or files that are decoded when they are indexed.
        labels: (N,) int64. subset: (M,) int64, the indices of the subset; all by default. Images
            are shared, not copied.
    """

    def __init__(
        self, images: Tensor | ImageFiles, labels: Tensor, subset: Tensor | None = None
    ) -> None:
        self.images, self.labels = images, labels
        self.subset = torch.arange(len(labels)) if subset is None else subset

    def __len__(self) -> int:
        return len(self.subset)

    def __getitem__(self, positions: Tensor | list[int] | int) -> Batch:
        return self.at(self.subset[torch.as_tensor(positions).reshape(-1)])

    def at(self, indices: Tensor) -> Batch:
        """The images with these indices, (B,) int64."""
        # Contiguous, whatever the layout in memory: other people's code may call view().
        return Batch(self.images[indices].contiguous(), self.labels[indices], indices)

    def identity(self) -> dict[str, Tensor]:
        """What tells these images from others: those in memory themselves; of files, their hashes
        and the first image as it is decoded, so that no other has to be.
        """
        images, chosen = self.images, self.subset
        known = {"labels": self.labels[chosen], "indices": chosen}
        if isinstance(images, Tensor):
            return {"images": images[chosen], **known}
        return {"files": images.hashes(chosen), "first": images[chosen[:1]], **known}

    def origin(self) -> dict[str, Tensor]:
        """All that was read, whatever the subset: ``labels``, and the images themselves
        (``pixels``) or, of files, their names and the lengths of some as bytes (``files``) and the
        hashes of these (``some``), so that nothing has to be decoded.
        """
        images = self.images
        if isinstance(images, Tensor):
            return {"labels": self.labels, "pixels": images}
        names = [os.path.basename(path) for path in images.paths]
        some = torch.arange(0, len(names), max(1, len(names) // _SOME))
        lengths = [str(os.stat(images.paths[index]).st_size) for index in some.tolist()]
        # No name of a file has a slash.
        listed = bytearray(os.fsencode("/".join([*names, *lengths])))
        files = torch.frombuffer(listed, dtype=torch.uint8)
        return {"labels": self.labels, "files": files, "some": images.hashes(some)}

    def only(self, subset: Tensor) -> Split:
        """The same images, restricted to those with the indices ``subset``."""
        return Split(self.images, self.labels, subset)


class EpochBatches(SequentialSampler):
    """The positions of each batch of an epoch, for one of several processes.

    The order depends on (seed, epoch) alone: a killed and resumed run sees the same batches, and
    torch's global generator is left as it is. All processes get the same number of batches, since
    they wait for each other at each batch. (It is a SequentialSampler because Lightning's
    ``overfit_batches`` replaces samplers of other types by one that gives single images.)

    Args:
        count: size of the data set.
        batch_size: images of a full batch in each process.
        shuffle: a new order every epoch, instead of 0..count-1.
        seed: seed of the order.
        rank: number of this process.
        world: number of processes.
        drop_last: True gives full batches only, and leaves out the images that do not fill one; a
            set smaller than one batch gives a single smaller batch. False gives every image exactly
            once over all processes, in batches whose sizes differ by at most one; with more
            processes than images, some batches are empty.
    """

    def __init__(
        self,
        count: int,
        batch_size: int,
        shuffle: bool = False,
        seed: int = 0,
        rank: int = 0,
        world: int = 1,
        drop_last: bool = False,
    ) -> None:
        self.count, self.batch_size, self.shuffle, self.seed = count, batch_size, shuffle, seed
        self.rank, self.world, self.drop_last = rank, world, drop_last
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Take the number of the next epoch from Lightning."""
        self.epoch = epoch

    def __len__(self) -> int:
        together = self.batch_size * self.world
        if self.drop_last:
            return max(self.count // together, min(self.count, 1))
        return -(-self.count // together)

    def __iter__(self) -> Iterator[Tensor]:  # type: ignore[override]
        order = (
            seeded_order(self.count, self.seed, "order", self.epoch)
            if self.shuffle
            else torch.arange(self.count)
        )
        pieces = len(self) * self.world
        if self.drop_last:
            # With fewer images than processes, processes share images rather than have none.
            size = min(self.batch_size, max(self.count // self.world, 1))
            bounds = [(piece * size, (piece + 1) * size) for piece in range(pieces)]
            order = order.repeat(-(-pieces * size // max(self.count, 1)))
        else:
            bounds = [
                (piece * self.count // pieces, (piece + 1) * self.count // pieces)
                for piece in range(pieces)
            ]
        for start, stop in bounds[self.rank :: self.world]:
            yield order[start:stop]


class TimedLoader(DataLoader[Batch]):
    """A DataLoader that counts for how long it was waited for.

    Attributes:
        waited: seconds so far.
    """

    waited = 0.0

    def __iter__(self) -> Iterator[Batch]:  # type: ignore[override]
        start = time.perf_counter()
        batches = super().__iter__()
        while True:
            batch = next(batches, None)
            self.waited += time.perf_counter() - start
            if batch is None:
                return
            yield batch
            start = time.perf_counter()


def loader(
    split: Dataset[Batch], batches: SequentialSampler, workers: int, pinned: bool = False
) -> TimedLoader:
    """A DataLoader of whole batches, in the order of ``batches``.

    Args:
        split: what is loaded.
        batches: the positions of each batch.
        workers: processes that load; 0 loads in this one.
        pinned: whether batches lie in pinned memory, from which a GPU copies by itself.
    """
    return TimedLoader(
        split,
        sampler=batches,
        batch_size=None,
        num_workers=workers,
        persistent_workers=workers > 0,
        pin_memory=pinned,
        # Without a generator of its own, a DataLoader draws a seed from torch's global generator
        # in each epoch.
        generator=torch.Generator(),
    )
