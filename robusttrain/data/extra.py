"""Training batches of two data sets, and batches that come several times in a row."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor
from torch.utils.data import Dataset, SequentialSampler

from robusttrain.data.batches import Batch, EpochBatches, Split, seeded_order


class Joined(Dataset[Batch]):
    """Two splits as one: the positions of the second split follow those of the first.

    The indices of the second split's images start where those of the first end, so that no two
    images share their random numbers.

    Args:
        first, second: images of the same shape, labels of the same classes.
    """

    def __init__(self, first: Split, second: Split) -> None:
        self.first, self.second = first, second

    def __len__(self) -> int:
        return len(self.first) + len(self.second)

    def __getitem__(self, positions: Tensor | list[int] | int) -> Batch:
        """A batch with the first split's images first, whatever their order in ``positions``."""
        chosen = torch.as_tensor(positions).reshape(-1)
        ours = chosen < len(self.first)
        own, more = self.first[chosen[ours]], self.second[chosen[~ours] - len(self.first)]
        more = more._replace(indices=more.indices + len(self.first.labels))
        return Batch(*(torch.cat(parts) for parts in zip(own, more, strict=True)))


class MixedBatches(SequentialSampler):
    """Batches of one data set, each filled up with images of another: positions in a `Joined`.

    The other images come in passes over all of them, each in a new order. The passes go on from
    epoch to epoch and are dealt out to all processes in turn. Like the own images, the other images
    of a batch are a function of seed, epoch and process.

    Args:
        own: batches of the own images, in each process.
        count: number of own images.
        others: number of other images.
        theirs: number of other images that fill a batch up.
    """

    def __init__(self, own: EpochBatches, count: int, others: int, theirs: int) -> None:
        self.own, self.count, self.others, self.theirs = own, count, others, theirs

    def set_epoch(self, epoch: int) -> None:
        """Take the number of the next epoch from Lightning."""
        self.own.set_epoch(epoch)

    def __len__(self) -> int:
        return len(self.own)

    def __iter__(self) -> Iterator[Tensor]:  # type: ignore[override]
        own, orders = self.own, {}
        # Without shuffling, all epochs are the same (Lightning's overfit_batches).
        epoch = own.epoch if own.shuffle else 0
        for number, batch in enumerate(own):
            start = ((epoch * len(own) + number) * own.world + own.rank) * self.theirs
            places = torch.arange(start, start + self.theirs)
            for turn in (places // self.others).unique().tolist():
                if turn not in orders:
                    orders[turn] = seeded_order(self.others, own.seed, "order of more images", turn)
            chosen = [
                orders[place // self.others][place % self.others] for place in places.tolist()
            ]
            yield torch.cat([batch, self.count + torch.stack(chosen)])


class Replayed(SequentialSampler):
    """Each batch several times in a row (Shafahi et al. 2019).

    Args:
        batches: the batches that are replayed.
        times: how many times each batch comes.
    """

    def __init__(self, batches: EpochBatches | MixedBatches, times: int) -> None:
        self.batches, self.times = batches, times

    def set_epoch(self, epoch: int) -> None:
        """Take the number of the next epoch from Lightning."""
        self.batches.set_epoch(epoch)

    def __len__(self) -> int:
        return self.times * len(self.batches)

    def __iter__(self) -> Iterator[Tensor]:  # type: ignore[override]
        for batch in self.batches:
            for _ in range(self.times):
                yield batch
