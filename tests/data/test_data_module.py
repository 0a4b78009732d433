"""What all data modules share, on a small data set made up here."""

from types import SimpleNamespace

import pytest
import torch

from robusttrain.core.errors import OptionError, UserError
from robusttrain.data import Facts, ImageData

TRAIN, TEST = 103, 41


class Made(ImageData):
    """Random images; ``read`` lists the splits that were read."""

    name = "made"

    def __init__(
        self, batch_size=16, validation=0.1, crop=2, flip=True, seed=0, workers=0, train=TRAIN
    ):
        super().__init__("nowhere", batch_size, validation, crop, flip, seed, workers)
        self.read, self.train = [], train

    def facts(self):
        return Facts(10, 3, 8)

    def _read(self, split):
        self.read.append(split)
        count, seed = (self.train, 1) if split == "train" else (TEST, 2)
        images = torch.randint(
            0, 256, (count, 3, 8, 8), generator=torch.Generator().manual_seed(seed)
        )
        return (
            images.to(torch.uint8),
            torch.arange(count) % 10,
            [str(number) for number in range(10)],
        )


def indices(loader):
    """The indices in the order in which the loader gives them."""
    return [index for batch in loader for index in batch.indices.tolist()]


def test_stages_read_their_own_split_once():
    data = Made()
    for stage in ("fit", "validate", "fit"):
        data.setup(stage)
    assert data.read == ["train"]
    data.setup("test")
    data.setup(None)
    assert data.read == ["train", "test"]
    assert (data.num_classes, data.channels, data.image_size) == data.facts()
    assert data.class_names == [str(number) for number in range(10)]


def test_batches_are_uint8_with_labels_and_indices():
    data = Made()
    data.setup()
    everything, labels, _ = data._read("train")
    for batch in [*data.train_dataloader(), *data.val_dataloader()]:
        assert batch.images.dtype == torch.uint8
        assert batch.labels.dtype == batch.indices.dtype == torch.int64
        assert torch.equal(batch.images, everything[batch.indices])
        assert torch.equal(batch.labels, labels[batch.indices])


def test_train_and_validation_share_the_images_in_memory():
    data = Made()
    data.setup("fit")
    assert data._train.images is data._validation.images
    assert data._train.images.untyped_storage().nbytes() == TRAIN * 3 * 8 * 8


def test_validation_split_is_disjoint_seeded_and_complete():
    def held_out(**options):
        data = Made(batch_size=1, **options)
        data.setup("fit")
        train, validation = indices(data.train_dataloader()), indices(data.val_dataloader())
        assert sorted(train + validation) == list(range(TRAIN))
        return validation

    assert len(held_out()) == 10
    assert len(held_out(validation=0.5)) == round(TRAIN / 2)
    assert held_out(validation=0.0) == []
    assert held_out() == held_out()
    assert held_out() != held_out(seed=1)
    assert held_out() != list(range(10))


@pytest.mark.parametrize("train", [1, 2, 3])
def test_tiny_sets_can_be_trained_on(train):
    data = Made(train=train)
    data.setup("fit")
    assert len(indices(data.train_dataloader())) == max(train - 1, 1)
    assert len(indices(data.val_dataloader())) == min(train - 1, 1)


def test_test_subsets_are_seeded_and_nested():
    def subset(count, seed):
        data = Made()
        data.limit_test(count, seed)
        data.setup("test")
        return indices(data.test_dataloader())

    assert subset(TEST, 0) == list(range(TEST))
    assert len(subset(10, 0)) == 10
    assert subset(10, 0) == sorted(subset(10, 0))
    assert set(subset(10, 0)) < set(subset(20, 0))
    assert subset(10, 0) != subset(10, 1)
    assert subset(10, 0) != list(range(10))


def test_limiting_after_setup_is_the_same():
    before, after = Made(), Made()
    before.limit_test(10, 3)
    before.setup("test")
    after.setup("test")
    assert indices(after.test_dataloader()) == list(range(TEST))
    after.limit_test(10, 3)
    assert indices(before.test_dataloader()) == indices(after.test_dataloader())


def test_too_large_a_test_subset_says_how_many_there_are():
    late, early = Made(), Made()
    late.setup("test")
    early.limit_test(TEST + 1, 0)
    for call in (lambda: late.limit_test(TEST + 1, 0), lambda: early.setup("test")):
        with pytest.raises(
            OptionError, match=f"images = {TEST + 1}: the test split has {TEST} images"
        ):
            call()
    with pytest.raises(OptionError, match="images = 0"):
        late.limit_test(0, 0)


def test_validation_images_are_chosen_by_the_seed():
    data = Made(validation=0.5)
    data.setup("fit")
    four, eight = data.validation_images(4), data.validation_images(8)
    assert torch.equal(four.indices, eight.indices[:4])
    assert set(eight.indices.tolist()) <= set(indices(data.val_dataloader()))
    assert torch.equal(four.images, data._read("train")[0][four.indices].float() / 255)
    assert torch.equal(four.labels, four.indices % 10)
    assert len(data.validation_images(1000).labels) == len(indices(data.val_dataloader()))
    none = Made(validation=0.0)
    none.setup("fit")
    with pytest.raises(OptionError, match="validation = 0"):
        none.validation_images(4)


def test_without_a_trainer_nothing_is_augmented():
    data = Made()
    data.setup("fit")
    batch = next(iter(data.train_dataloader()))
    images = data.on_after_batch_transfer(batch, 0).images
    assert images.is_contiguous(memory_format=torch.channels_last)
    assert images.dtype == torch.float32
    assert torch.equal(images, batch.images / 255)


def test_processes_divide_the_images():
    class Process:
        world_size = 3
        strategy = SimpleNamespace(root_device=torch.device("cpu"))

        def __init__(self, rank):
            self.global_rank = rank

    seen = []
    for rank in range(3):
        data = Made(batch_size=4)
        data.setup("test")
        data.trainer = Process(rank)
        seen += indices(data.test_dataloader())
    assert sorted(seen) == list(range(TEST))


@pytest.mark.parametrize(
    ("option", "value"),
    [("batch_size", 0), ("validation", -0.1), ("validation", 0.995), ("crop", -1), ("workers", -1)],
)
def test_options_that_cannot_work_are_named(option, value):
    with pytest.raises(OptionError, match=f"^{option} = ") as caught:
        Made(**{option: value})
    assert isinstance(caught.value, UserError)


def test_validation_images_take_the_place_of_test_images():
    """They are those that training holds out, with their indices in the train split; the test split
    is not read.
    """
    training, data = Made(), Made()
    training.setup("fit")
    data.attack_validation()
    data.setup("test")
    assert data.read == ["train"]
    held_out = sorted(indices(training.val_dataloader()))
    assert indices(data.test_dataloader()) == held_out
    batch, expected = data.test_images(torch.tensor(held_out)), training.validation_images(99)
    order = expected.indices.argsort()
    assert torch.equal(batch.images, expected.images[order])
    assert torch.equal(batch.labels, expected.labels[order])
    data.limit_test(4, seed=0)
    four = indices(data.test_dataloader())
    data.limit_test(7, seed=0)
    assert len(four) == 4
    assert {*four} < {*indices(data.test_dataloader())} < {*held_out}


def test_no_validation_images_cannot_be_attacked():
    data = Made(validation=0)
    data.attack_validation()
    with pytest.raises(OptionError, match=r"^validation = 0: must be above 0"):
        data.setup("test")
    few = Made()
    few.attack_validation()
    few.limit_test(50, seed=0)
    with pytest.raises(OptionError, match=r"^images = 50: the validation split has 10 images"):
        few.setup("test")
