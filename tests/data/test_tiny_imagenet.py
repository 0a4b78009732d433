"""Tiny ImageNet in a small tree of its official layout."""

import numpy as np
import pytest
import torch
from PIL import Image

from robusttrain.core.errors import UserError
from robusttrain.data import Facts, TinyImageNet

WNIDS = ["n02", "n01", "n03"]


def save(path, value, size=64, mode="RGB"):
    """An image of one colour, which JPEG keeps as it is."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((size, size, 3), value, np.uint8)).convert(mode).save(path, "JPEG")


@pytest.fixture
def root(tmp_path):
    folder = tmp_path / "tiny-imagenet-200"
    for label, wnid in enumerate(WNIDS):
        for number in range(4):
            mode = "L" if number == 3 else "RGB"  # some of the real ones are grey
            save(
                folder / "train" / wnid / "images" / f"{wnid}_{number}.JPEG",
                50 * label + number,
                mode=mode,
            )
        (folder / "train" / wnid / f"{wnid}_boxes.txt").write_text("boxes\n")
    for number in range(5):
        save(folder / "val" / "images" / f"val_{number}.JPEG", 200 + number)
    lines = [f"val_{number}.JPEG\t{WNIDS[number % 3]}\t0\t0\t63\t63\n" for number in range(5)]
    (folder / "val" / "val_annotations.txt").write_text("".join(lines))
    (folder / "wnids.txt").write_text("\n".join(WNIDS) + "\n")
    (folder / "words.txt").write_text(
        "n01\tgoldfish, Carassius auratus\nn02\tbullfrog\nn99\tnothing\n"
    )
    return tmp_path


@pytest.mark.parametrize("inner", [True, False])
def test_official_layout(root, inner):
    data = TinyImageNet(root=str(root if not inner else root / "tiny-imagenet-200"))
    assert data.facts() == Facts(3, 3, 64)
    data.setup()
    assert data.class_names == ["bullfrog", "goldfish", "n03"]  # in the order of wnids.txt
    assert data._train.images.shape == (12, 3, 64, 64)
    assert data._train.images.dtype == torch.uint8
    colours = data._train.images[:, 0, 0, 0].int()
    assert torch.equal(colours, 50 * data._train.labels + torch.arange(12) % 4)
    assert data._test.labels.tolist() == [0, 1, 2, 0, 1]
    assert data._test.images[:, 2, 5, 5].tolist() == [200, 201, 202, 203, 204]


def test_missing_data(tmp_path):
    with pytest.raises(
        UserError,
        match=r"no Tiny ImageNet in .*wnids\.txt.*tiny-imagenet-200\.zip.*--data\.root DIR",
    ):
        TinyImageNet(root=str(tmp_path)).facts()


def test_unknown_class_of_a_validation_image_is_named(root):
    (root / "tiny-imagenet-200" / "val" / "val_annotations.txt").write_text(
        "val_0.JPEG\tn01\t0\nval_1.JPEG\tn77\t0\n"
    )
    with pytest.raises(UserError, match=r"line 2 of .*val_annotations\.txt"):
        TinyImageNet(root=str(root)).setup("test")


def test_image_of_another_size_is_named(root):
    save(root / "tiny-imagenet-200" / "train" / "n01" / "images" / "n01_1.JPEG", 0, size=32)
    with pytest.raises(
        UserError, match=r"n01_1\.JPEG is 32x32 pixels, where the images must be 64x64"
    ):
        TinyImageNet(root=str(root)).setup("fit")


def test_image_that_is_not_there_is_named(root):
    (root / "tiny-imagenet-200" / "val" / "images" / "val_2.JPEG").unlink()
    with pytest.raises(UserError, match=r"val_2\.JPEG"):
        TinyImageNet(root=str(root)).setup("test")
