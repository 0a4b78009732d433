"""What is found again, or gone on with, is of the images, files and code that are there now."""

import json
import sys
from dataclasses import replace

import pytest
import torch
from PIL import Image

from robusttrain.config import classes
from robusttrain.config.build import build
from robusttrain.core.errors import UserError
from robusttrain.core.telling import SILENT
from robusttrain.data import Digits, ImageFolder
from robusttrain.models import MLP, VGGSmall
from robusttrain.models.defended import DefendedClassifier
from robusttrain.running import purifiers
from robusttrain.running.made_from import (
    BESIDE,
    MADE_FROM,
    ORIGIN,
    besides,
    digests,
    edited,
    made_from,
    other_images,
    own_code,
)
from robusttrain.running.resuming import refuse_other_besides
from robusttrain.running.surrogates import Keeper
from robusttrain.storage.files import hash_of_tensors
from robusttrain.storage.weights import save_tensors

EMPTY = {"format": 1, "model": {"class_path": "m"}, "defense": None, "data": {"class_path": "d"}}


def pictures(root, colour="black"):
    for split in ("train", "test"):
        for name in ("a", "b"):
            (root / split / name).mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (16, 16), colour).save(root / split / name / "0.png")
    return ImageFolder(str(root), batch_size=4)


def checkpoint(path, **said):
    torch.save({"robusttrain": {**EMPTY, **said}}, path)
    return path


def test_a_surrogate_of_other_images_is_trained_anew(tmp_path):
    trained, said = [], []

    def train(keeper, recipe, path, telling):
        trained.append(path)
        data = keeper.data.alone()
        data.setup("fit")
        path.parent.mkdir(exist_ok=True)
        checkpoint(path, **{ORIGIN: digests(data)})

    def provide():
        node = {
            "class_path": "robusttrain.data.ImageFolder",
            "init_args": {"root": str(tmp_path / "data")},
        }
        keeper = Keeper(tmp_path / "kept", DefendedClassifier(None, VGGSmall()), node, {})
        keeper.recipe = lambda name, epochs=None: {"model": "mlp", "trainer": {"max_epochs": 1}}
        return keeper.provide(["mine"], train, telling=replace(SILENT, say=said.append))["mine"]

    pictures(tmp_path / "data")
    first = provide()
    assert provide() == first
    pictures(tmp_path / "data", "red")
    second = provide()
    assert trained == [first, second]
    assert f"surrogate mine: {first} is not taken (the training images have changed" in said[-2]
    assert provide() == second
    pictures(tmp_path / "data")
    assert provide() == first
    assert len(trained) == 2


def test_a_purifier_of_other_images_is_not_taken(tmp_path):
    network = {"class_path": "robusttrain.models.Autoencoder", "init_args": {"width": 8}}
    spelt, said = purifiers._spelt(network), []

    def newest():
        data = ImageFolder(str(tmp_path / "data"))
        return purifiers.newest("denoiser", network, data, tmp_path, said.append)

    data = pictures(tmp_path / "data")
    path = tmp_path / f"{data.name}-denoiser-1.safetensors"
    about = {"data": purifiers._identity(data), "network": spelt}
    save_tensors({}, path, {"purifier": json.dumps(about)})
    assert newest() == path  # of an earlier version
    about[MADE_FROM] = made_from(data, network)
    save_tensors({}, path, {"purifier": json.dumps(about)})
    assert newest() == path
    pictures(tmp_path / "data", "red")
    assert newest() is None
    assert said == [
        f"denoiser: {path} is not taken (the training images have changed since: their content)"
    ]


def load(file, text):
    """The fingerprint of a network in a file, and the network, as in a process that reads the file
    now.
    """
    file.write_text(text)
    for name in [name for name, path in classes._files.items() if path == file.resolve()]:
        del classes._files[name], sys.modules[name]
    node = {"class_path": f"{file}:Mine"}
    return own_code({"class_path": "robusttrain.models.MLP"}, [node]), build(node, "model")


def test_code_of_a_file_is_told_apart(tmp_path):
    text = "from torch import nn\n\n\nclass Mine(nn.Module):\n    scale = 1\n"
    file = tmp_path / "made_from_mine.py"
    one, network = load(file, text)
    kept = checkpoint(tmp_path / "a.ckpt", **{BESIDE: besides(one, network, {}, Digits())})
    older = checkpoint(tmp_path / "b.ckpt")
    for changed in (False, True):
        other, network = load(file, text.replace("1", "2") if changed else text)
        assert (other != one) == changed
        assert edited(kept, network) == changed
        assert not edited(older, network)
    assert one != ""
    assert own_code({"class_path": "robusttrain.models.MLP"}, None) == ""


@pytest.fixture
def goes_on(tmp_path):
    """What is said of a run that rests on this, after it began on that."""

    def run(before, now):
        said = []
        file = checkpoint(tmp_path / "last.ckpt", **({BESIDE: before} if before else {}))
        refuse_other_besides(file, now, said.append)
        return said

    return run


def test_a_run_does_not_go_on_with_other_files(goes_on, tmp_path):
    file = tmp_path / "static.ckpt"
    options = {"init_args": {"models": [str(file)], "attack": {"steps": 3}, "trust": ["a\0"]}}
    file.write_text("one")
    before = besides("", MLP(), options, Digits())
    assert goes_on(before, before) == []
    assert goes_on(None, before) == []
    file.write_text("two")
    with pytest.raises(UserError, match="static.ckpt, which --training.objective names, has ano"):
        goes_on(before, besides("", MLP(), options, Digits()))


def test_a_run_does_not_go_on_with_other_further_images(goes_on, tmp_path):
    def now(colour="black"):
        own, extra = pictures(tmp_path / "own"), pictures(tmp_path / "extra", colour)
        own.add_extra(extra, 0.5)
        return besides("", MLP(), {}, own)

    before = now()
    assert goes_on(before, now()) == []
    (line,) = goes_on(before, now("red"))
    assert "the images of --extra.root have changed since (their content)" in line
    (tmp_path / "extra" / "train" / "b" / "0.png").rename(
        tmp_path / "extra" / "train" / "a" / "1.png"
    )
    Image.new("RGB", (16, 16)).save(tmp_path / "extra" / "train" / "b" / "1.png")
    with pytest.raises(UserError, match="--extra.root have changed since"):
        goes_on(before, now())


def test_edited_code_is_told(goes_on):
    before = besides("1234", MLP(), {}, Digits())
    (line,) = goes_on(before, besides("5678", MLP(), {}, Digits()))
    assert "code of your own that this run names was edited since it began" in line


def test_files_of_one_length_are_told_apart_by_their_content(tmp_path):
    """As all files of a format without compression are, which are read one by one."""

    def known(colour):
        for split in ("train", "test"):
            for name in ("a", "b"):
                (tmp_path / split / name).mkdir(parents=True, exist_ok=True)
                image = Image.new("RGB", (16, 16))
                image.putpixel((9, 9), colour)
                image.save(tmp_path / split / name / "0.bmp")
        data = ImageFolder(str(tmp_path), batch_size=4, memory_limit_gib=0)
        data.setup("fit")
        data.setup("test")
        tested = data.test_dataloader().dataset
        return digests(data), hash_of_tensors(tested.identity())

    (black, tested_black), (white, tested_white) = known((0, 0, 0)), known((255, 255, 255))
    assert [black[key] == white[key] for key in ("labels", "files")] == [True, True]
    assert other_images({ORIGIN: black}, white) == "the content of files"
    assert other_images({ORIGIN: black}, known((0, 0, 0))[0]) == ""
    assert tested_black != tested_white
    earlier = {key: black[key] for key in ("labels", "files")}
    assert other_images({ORIGIN: earlier}, white) == ""  # of earlier versions, which do not say
