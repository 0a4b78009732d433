"""CIFAR-10 and CIFAR-100 in small trees of their official layouts."""

import hashlib
import pickle

import numpy as np
import pytest
import torch
import torchvision.datasets

from robusttrain.core.errors import UserError
from robusttrain.data import CIFAR10, CIFAR100, Facts

DATA = {10: CIFAR10, 100: CIFAR100}
FOLDER = {10: "cifar-10-batches-bin", 100: "cifar-100-binary"}
TRAIN_FILES = {10: [f"data_batch_{number}.bin" for number in range(1, 6)], 100: ["train.bin"]}
TEST_FILE = {10: "test_batch.bin", 100: "test.bin"}
NAMES_FILE = {10: "batches.meta.txt", 100: "fine_label_names.txt"}


def binary_tree(folder, classes):
    """A tree with ten images a file; returns the records of all train files."""
    folder.mkdir(parents=True)
    generator = np.random.default_rng(classes)
    train = []
    for name in [*TRAIN_FILES[classes], TEST_FILE[classes]]:
        pixels = generator.integers(0, 256, (10, 3072), np.uint8)
        label = generator.integers(0, classes, (10, 1), np.uint8)
        coarse = [] if classes == 10 else [np.full((10, 1), 255, np.uint8)]
        np.concatenate([*coarse, label, pixels], 1).tofile(folder / name)
        train.append((pixels.reshape(10, 3, 32, 32), label[:, 0]))
    (folder / NAMES_FILE[classes]).write_text(
        "".join(f"name{number}\n" for number in range(classes)) + "\n"
    )
    return [torch.from_numpy(np.concatenate(part)) for part in zip(*train[:-1], strict=True)]


@pytest.mark.parametrize("classes", [10, 100])
@pytest.mark.parametrize("inner", [True, False])
def test_binary_version(tmp_path, classes, inner):
    pixels, labels = binary_tree(tmp_path / "root" / (FOLDER[classes] if inner else ""), classes)
    data = DATA[classes](root=str(tmp_path / "root"), download=False)
    data.prepare_data()
    data.setup()
    assert data.facts() == Facts(classes, 3, 32)
    assert data.class_names == [f"name{number}" for number in range(classes)]
    assert data._train.images.dtype == torch.uint8
    assert torch.equal(data._train.images, pixels)
    assert torch.equal(data._train.labels, labels.long())
    assert len(data._test) == 10


def test_fit_does_not_open_the_test_file(tmp_path):
    binary_tree(tmp_path / FOLDER[10], 10)
    (tmp_path / FOLDER[10] / TEST_FILE[10]).write_bytes(b"broken")
    data = CIFAR10(root=str(tmp_path), download=False)
    data.setup("fit")
    with pytest.raises(UserError, match=r"test_batch\.bin is cut short"):
        data.setup("test")


def test_labels_beyond_the_classes_are_refused(tmp_path):
    binary_tree(tmp_path / FOLDER[10], 10)
    np.full(3073, 10, np.uint8).tofile(tmp_path / FOLDER[10] / "data_batch_3.bin")
    with pytest.raises(UserError, match="does not have the 10 classes"):
        CIFAR10(root=str(tmp_path), download=False).setup("fit")


def test_missing_file_of_the_binary_version_is_named(tmp_path):
    binary_tree(tmp_path / FOLDER[10], 10)
    (tmp_path / FOLDER[10] / "data_batch_3.bin").unlink()
    with pytest.raises(UserError, match=r"data_batch_3\.bin"):
        CIFAR10(root=str(tmp_path), download=False).setup("fit")


def python_tree(root, monkeypatch):
    """A tree of the Python version, whose MD5 sums are made the official ones."""
    folder = root / torchvision.datasets.CIFAR10.base_folder
    folder.mkdir(parents=True)

    def write(name, content):
        (folder / name).write_bytes(pickle.dumps(content))
        return hashlib.md5((folder / name).read_bytes()).hexdigest()

    generator = np.random.default_rng(0)
    pixels = generator.integers(0, 256, (6, 4, 3072), np.uint8)
    names = [f"data_batch_{number}" for number in range(1, 6)] + ["test_batch"]
    sums = [
        [name, write(name, {"data": pixels[n], "labels": [n, 1, 2, 3]})]
        for n, name in enumerate(names)
    ]
    meta = {"label_names": [f"name{number}" for number in range(10)]}
    official = torchvision.datasets.CIFAR10
    monkeypatch.setattr(official, "train_list", sums[:5])
    monkeypatch.setattr(official, "test_list", sums[5:])
    monkeypatch.setattr(official, "meta", {**official.meta, "md5": write("batches.meta", meta)})
    return folder, torch.from_numpy(pixels)


def test_python_version(tmp_path, monkeypatch):
    _, pixels = python_tree(tmp_path, monkeypatch)
    data = CIFAR10(root=str(tmp_path), download=False)
    data.setup()
    assert torch.equal(data._train.images, pixels[:5].reshape(20, 3, 32, 32))
    assert data._train.labels[::4].tolist() == [0, 1, 2, 3, 4]
    assert data._test.labels.tolist() == [5, 1, 2, 3]
    assert data.class_names[3] == "name3"


class Bomb:
    """Leaves a trace when it is unpickled."""

    def __init__(self, trace):
        self.trace = trace

    def __reduce__(self):
        return open, (str(self.trace), "w")


def test_tampered_pickle_is_refused_and_never_run(tmp_path, monkeypatch):
    folder, _ = python_tree(tmp_path, monkeypatch)
    (folder / "data_batch_2").write_bytes(pickle.dumps(Bomb(tmp_path / "trace")))
    with pytest.raises(
        UserError, match=r"differs from the official CIFAR-10.*--data\.download true"
    ):
        CIFAR10(root=str(tmp_path), download=False).setup("fit")
    assert not (tmp_path / "trace").exists()


@pytest.mark.parametrize("classes", [10, 100])
def test_missing_data(tmp_path, classes):
    data = DATA[classes](root=str(tmp_path / "none"), download=False)
    for call in (data.facts, lambda: data.setup("fit")):
        with pytest.raises(UserError) as caught:
            call()
        message = str(caught.value)
        assert "\n" not in message
        for part in (
            f"CIFAR-{classes} ",
            str(tmp_path / "none"),
            FOLDER[classes],
            "--data.root",
            "--data.download true",
        ):
            assert part in message


def test_download_that_fails_says_what_to_do(tmp_path, monkeypatch):
    def no_network(*args, **kwargs):
        raise OSError("<urlopen error\nno network>")

    monkeypatch.setattr(torchvision.datasets.CIFAR10, "download", no_network)
    data = CIFAR10(root=str(tmp_path / "none"))
    assert data.facts() == Facts(10, 3, 32)
    with pytest.raises(
        UserError,
        match=r"^cannot download CIFAR-10 to .*no network.*--data\.root DIR --data\.download"
        " false$",
    ):
        data.prepare_data()


def test_no_download_where_data_are(tmp_path, monkeypatch):
    binary_tree(tmp_path / FOLDER[10], 10)
    monkeypatch.setattr(
        torchvision.datasets.CIFAR10, "__init__", lambda *args, **kwargs: pytest.fail("downloads")
    )
    CIFAR10(root=str(tmp_path)).prepare_data()
