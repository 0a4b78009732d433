"""More training images from a second data set, and batches that come several times."""

from collections import Counter

import pytest
import torch
from PIL import Image

from robusttrain.core.errors import OptionError, UserError
from robusttrain.data import Digits, ImageFolder
from robusttrain.data.batches import EpochBatches, Split
from robusttrain.data.extra import Joined, MixedBatches, Replayed


def split(count, first_value, subset=None):
    """One-pixel images whose value and label tell which they are."""
    values = first_value + torch.arange(count)
    return Split(values.to(torch.uint8).view(-1, 1, 1, 1), values, subset)


def test_joined_hands_out_both_and_no_index_twice():
    first, second = split(5, 0, torch.tensor([1, 3, 4])), split(4, 100)
    joined = Joined(first, second)
    assert len(joined) == 7
    batch = joined[torch.tensor([0, 2, 3, 6])]
    assert batch.labels.tolist() == [1, 4, 100, 103]
    assert batch.images.flatten().tolist() == batch.labels.tolist()
    assert batch.indices.tolist() == [1, 4, 5, 8]  # after all five that the first one was read with
    everyone = joined[torch.arange(7)]
    assert len(everyone.indices.unique()) == 7


def epochs(sampler, count):
    for epoch in range(count):
        sampler.set_epoch(epoch)
        yield from sampler


@pytest.mark.parametrize("world", [1, 2])
def test_batches_are_filled_up_and_all_others_come_equally_often(world):
    def sampler(rank):
        return MixedBatches(EpochBatches(24, 4, True, 3, rank, world, drop_last=True), 24, 9, 3)

    batches = [batch for rank in range(world) for batch in epochs(sampler(rank), 6)]
    assert {len(batch) for batch in batches} == {7}
    assert all((batch[:4] < 24).all() and (batch[4:] >= 24).all() for batch in batches)
    # Six epochs of 24 own images, 4 in a batch, bring 36 batches in all processes together: 108
    # others, 12 passes.
    own, others = (
        Counter(place for batch in batches for place in part(batch))
        for part in (lambda batch: batch[:4].tolist(), lambda batch: batch[4:].tolist())
    )
    assert own == dict.fromkeys(range(24), 6)
    assert others == dict.fromkeys(range(24, 33), 12)
    again = [batch for rank in range(world) for batch in epochs(sampler(rank), 6)]
    assert all(torch.equal(one, other) for one, other in zip(batches, again, strict=True))


def test_an_epoch_is_the_same_alone_as_after_others():
    sampler = MixedBatches(EpochBatches(24, 4, True, drop_last=True), 24, 9, 2)
    third = list(epochs(sampler, 3))[-len(sampler) :]
    resumed = MixedBatches(EpochBatches(24, 4, True, drop_last=True), 24, 9, 2)
    resumed.set_epoch(2)
    assert all(torch.equal(one, other) for one, other in zip(third, resumed, strict=True))


def test_a_batch_may_hold_more_others_than_there_are():
    sampler = MixedBatches(EpochBatches(8, 2, True, drop_last=True), 8, 3, 5)
    counts = Counter(place for batch in sampler for place in batch[2:].tolist())
    assert set(counts) == {8, 9, 10}
    assert sum(counts.values()) == 20
    assert max(counts.values()) - min(counts.values()) <= 1


def test_unshuffled_epochs_are_one_epoch():
    sampler = MixedBatches(EpochBatches(8, 2, drop_last=True), 8, 5, 2)
    first, second = (list(part) for part in torch.stack(list(epochs(sampler, 2))).chunk(2))
    assert all(torch.equal(one, other) for one, other in zip(first, second, strict=True))


def test_replayed():
    own = EpochBatches(6, 2, True, drop_last=True)
    sampler = Replayed(own, 3)
    sampler.set_epoch(4)
    assert own.epoch == 4
    assert len(sampler) == 9
    expected = [batch for batch in own for _ in range(3)]
    assert all(torch.equal(one, other) for one, other in zip(sampler, expected, strict=True))


def folder(root, classes, side=16, mode="L"):
    for name in classes:
        (root / "train" / name).mkdir(parents=True)
        for number in range(4):
            Image.new(mode, (side, side), 50 * number if mode == "L" else (number, 0, 0)).save(
                root / "train" / name / f"{number}.png"
            )
    return ImageFolder(str(root), validation=0.0, image_size=side, channels=1 if mode == "L" else 3)


def test_classes_are_matched_by_name(tmp_path):
    data = Digits(batch_size=8)
    assert data.add_extra(folder(tmp_path, ["7", "2"]), 0.25) == 8
    batch = next(iter(data.train_dataloader()))
    assert batch.images.shape == (8, 1, 16, 16)
    assert set(batch.labels[6:].tolist()) <= {2, 7}
    assert (batch.indices[6:] >= 1_500).all()


@pytest.mark.parametrize("share", [0.0, 0.05, 0.97, 1.0])
def test_a_share_that_leaves_one_of_them_out_is_refused(share, tmp_path):
    with pytest.raises(OptionError, match=rf"^share = {share}: both data sets need an image"):
        Digits(batch_size=8).add_extra(folder(tmp_path, ["7"]), share)


@pytest.mark.parametrize(
    ("classes", "side", "mode", "told"),
    [
        (["seven"], 16, "L", "the data set has no class 'seven'"),
        (["7"], 8, "L", "its images are 1 x 8 x 8, the data set's are 1 x 16 x 16"),
        (["7"], 16, "RGB", "its images are 3 x 16 x 16"),
    ],
)
def test_what_does_not_fit_is_named(classes, side, mode, told, tmp_path):
    with pytest.raises(UserError, match=told):
        Digits(batch_size=8).add_extra(folder(tmp_path, classes, side, mode), 0.5)
