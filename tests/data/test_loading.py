"""Loading: what is waited for, pinned memory for GPUs alone, and what makes it faster."""

import time
from types import SimpleNamespace

import pytest
import torch
from PIL import Image

from robusttrain.data import Digits, ImageFolder
from robusttrain.data.batches import Split, loader


class Slow(Split):
    """Takes a twentieth of a second for a batch."""

    def __getitem__(self, positions):
        time.sleep(0.05)
        return super().__getitem__(positions)


def test_a_loader_counts_how_long_it_was_waited_for():
    split = Slow(torch.zeros(4, 1, 2, 2, dtype=torch.uint8), torch.zeros(4, dtype=torch.int64))
    batches = loader(split, [torch.tensor([0, 1]), torch.tensor([2, 3])], workers=0)
    for epoch in (1, 2):
        for batch in batches:
            assert len(batch.images) == 2
            time.sleep(0.2)  # what is done with the batch
        assert 0.1 * epoch <= batches.waited < 0.2 * epoch


@pytest.mark.parametrize("kind", ["cpu", "cuda"])
def test_memory_is_pinned_for_the_trainers_device(monkeypatch, kind):
    """A machine may have a GPU that the trainer leaves alone."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: kind == "cpu")
    data = Digits(batch_size=8)
    data.setup("fit")
    assert not data.train_dataloader().pin_memory
    data.trainer = SimpleNamespace(
        strategy=SimpleNamespace(root_device=torch.device(kind)), global_rank=0, world_size=1
    )
    for each in (data.train_dataloader(), data.val_dataloader()):
        assert each.pin_memory == (kind == "cuda")


def folder(path):
    for split in ("train", "test"):
        for name in ("a", "b"):
            (path / split / name).mkdir(parents=True)
            for number in range(2):
                Image.new("RGB", (4, 4), (number,) * 3).save(path / split / name / f"{number}.png")
    return str(path)


@pytest.mark.parametrize(
    ("options", "advice"),
    [
        ({}, "--data.workers 2 loads beside the training"),
        ({"workers": 2}, "the images are in memory, where --data.workers 0 may be faster"),
        (
            {"memory_limit_gib": 0},
            "--data.workers 2 loads beside the training;"
            " --data.memory_limit_gib 1 decodes them once, into memory",
        ),
        (
            {"memory_limit_gib": 0, "workers": 3},
            "more --data.workers than 3 load more batches at once;"
            " --data.memory_limit_gib 1 decodes them once, into memory",
        ),
    ],
)
def test_what_makes_loading_faster(tmp_path, options, advice):
    data = ImageFolder(root=folder(tmp_path), **options)
    data.setup("fit")
    assert data.faster_loading == advice
