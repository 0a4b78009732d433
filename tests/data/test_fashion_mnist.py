"""Fashion-MNIST from small IDX files."""

import gzip
import struct

import numpy as np
import pytest
import torch
import torchvision.datasets

from robusttrain.core.errors import OptionError, UserError
from robusttrain.data import Facts, FashionMNIST


def idx(array):
    """The bytes of an IDX file."""
    return struct.pack(f">I{array.ndim}I", 0x800 + array.ndim, *array.shape) + array.tobytes()


def tree(folder, zipped):
    """Twelve train and five test images; returns those of training."""
    folder.mkdir(parents=True, exist_ok=True)
    generator = np.random.default_rng(0)
    for prefix, count in (("t10k", 5), ("train", 12)):
        images, labels = (
            generator.integers(0, 256, (count, 28, 28), np.uint8),
            np.arange(count, dtype=np.uint8) % 10,
        )
        for name, array in (
            (f"{prefix}-images-idx3-ubyte", images),
            (f"{prefix}-labels-idx1-ubyte", labels),
        ):
            content = idx(array)
            (folder / (name + ".gz" * zipped)).write_bytes(
                gzip.compress(content) if zipped else content
            )
    return torch.from_numpy(images)


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("inner", ["", "FashionMNIST/raw"])
@pytest.mark.parametrize(("size", "border"), [(32, 2), (28, 0)])
def test_official_layouts(tmp_path, zipped, inner, size, border):
    pixels = tree(tmp_path / inner, zipped)
    data = FashionMNIST(root=str(tmp_path), image_size=size, download=False)
    data.prepare_data()
    data.setup()
    assert data.facts() == Facts(10, 1, size)
    images = data._train.images
    assert images.shape == (12, 1, size, size)
    assert torch.equal(images[:, 0, border : size - border, border : size - border], pixels)
    assert images.sum() == pixels.sum()  # nothing but zeros around
    assert data._train.labels.tolist() == [*range(10), 0, 1]
    assert len(data._test) == 5
    assert data.class_names[0] == "T-shirt/top"


def test_missing_data(tmp_path):
    data = FashionMNIST(root=str(tmp_path / "none"), download=False)
    with pytest.raises(
        UserError,
        match=r"no Fashion-MNIST in .*none.*train-images-idx3-ubyte.*--data\.root.*download true",
    ):
        data.facts()
    assert FashionMNIST(root=str(tmp_path / "none")).facts() == Facts(10, 1, 32)


def test_download_only_where_files_are_missing(tmp_path, monkeypatch):
    asked = []

    def download(self):
        asked.append(True)
        raise RuntimeError("Error downloading")

    monkeypatch.setattr(torchvision.datasets.FashionMNIST, "download", download)
    with pytest.raises(
        UserError,
        match=r"cannot download Fashion-MNIST .*Error downloading.*--data\.download false",
    ):
        FashionMNIST(root=str(tmp_path)).prepare_data()
    tree(tmp_path, zipped=True)
    FashionMNIST(root=str(tmp_path)).prepare_data()
    assert len(asked) == 1


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"not gzip at all",
        gzip.compress(b"too short"),
        gzip.compress(idx(np.zeros((12, 28, 28), np.uint8)))[:40],
        gzip.compress(idx(np.zeros((12, 28, 28), np.uint8))[:-1]),
        gzip.compress(struct.pack(">4I", 0x803, 2**31, 28, 28)),
        gzip.compress(struct.pack(">4I", 0x903, 12, 28, 28) + bytes(12 * 784)),
        gzip.compress(idx(np.zeros((11, 28, 28), np.uint8))),
    ],
    ids=[
        "empty",
        "no-gzip",
        "no-header",
        "cut-gzip",
        "cut",
        "too-large",
        "other-type",
        "other-count",
    ],
)
def test_corrupt_file_is_named(tmp_path, content):
    tree(tmp_path, zipped=True)
    (tmp_path / "train-images-idx3-ubyte.gz").write_bytes(content)
    with pytest.raises(UserError, match=r"train-(images|labels)-idx._?.*get (it|them) again"):
        FashionMNIST(root=str(tmp_path), download=False).setup("fit")


def test_size_below_the_original_is_refused():
    with pytest.raises(OptionError, match="image_size = 27"):
        FashionMNIST(image_size=27)
