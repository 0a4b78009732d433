"""A network in a file of the user's: trained, kept, and attacked from another folder."""

import json
import sys

import pytest

from robusttrain.config import classes

pytestmark = pytest.mark.filterwarnings("ignore")
NET = """
from torch import nn


class MyNet(nn.Module):
    def __init__(self, num_classes, width=8):
        super().__init__()
        self.layers = nn.Sequential(
            nn.Flatten(), nn.Linear(256, width), nn.ReLU(), nn.Linear(width, num_classes)
        )

    def forward(self, images):
        return self.layers(images)
"""
SHORT = [
    *("--trainer.max_epochs", 1, "--trainer.limit_train_batches", 2, "--robust.every", 0),
    *("--trainer.limit_val_batches", 1, "--trainer.accelerator", "cpu", "--pictures.images", 0),
]
FEW = ["--attack", "fgsm", "--images", 4, "--trainer.accelerator", "cpu"]


@pytest.fixture(autouse=True)
def _as_before(monkeypatch):
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.setattr(classes, "_files", {})
    yield
    for name in [name for name in sys.modules if name.startswith("mynet")]:
        del sys.modules[name]


@pytest.fixture
def here(command, monkeypatch, tmp_path):
    """The user's folder, not that of the program."""
    (tmp_path / "mynet.py").write_text(NET)
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("named", ["mynet.py:MyNet", "mynet.MyNet"])
def test_it_is_trained_and_attacked(command, here, named, monkeypatch):
    trained = command("train.py", "--model", named, "--model.width", 4, "--name", "mine", *SHORT)
    assert trained.code == 0, trained.err
    kept = here / "checkpoints" / "mine" / "version_0" / "last.ckpt"
    advice = trained.err[trained.err.index("attack with ") :].splitlines()[0].split()[3:]
    again = command("train.py", "--model", named, "--model.width", 4, "--name", "mine", *SHORT)
    assert again.code == 0, again.err
    trust = ["--trust", named.partition(":")[0].removesuffix(".MyNet")]
    assert advice[-2:] == trust
    attacked = command(*advice, *FEW)
    assert attacked.code == 0, attacked.err
    refused = command("evaluate.py", "--checkpoint", kept, *FEW)
    assert refused.code == 2
    assert "not trusted" in refused.err
    assert "--trust" in refused.err


def test_its_checkpoint_is_attacked_from_another_folder(command, here, monkeypatch):
    assert command("train.py", "--model", "mynet.py:MyNet", "--name", "mine", *SHORT).code == 0
    kept = here / "checkpoints" / "mine" / "version_0" / "last.ckpt"
    monkeypatch.chdir(here / "elsewhere")
    missing = command("evaluate.py", "--checkpoint", kept, "--trust", "mynet.py", *FEW)
    assert missing.code == 2
    assert f"MyNet came from {here / 'mynet.py'}: give the path where the file lies now" in (
        missing.err
    )
    assert not [*(here / "elsewhere").iterdir()]
    done = command("evaluate.py", "--checkpoint", kept, "--trust", "../mynet.py", *FEW)
    assert done.code == 0, done.err
    found = json.loads((here / "elsewhere" / "results" / "newest" / "results.json").read_text())
    assert found["plan"]["model"]["class_path"] == f"{here / 'mynet.py'}:MyNet"
    repeated = command("evaluate.py", "--again", "results/newest", "--trust", "../mynet.py")
    assert repeated.code == 0, repeated.err
    assert "again: the same" in repeated.err


def test_its_weights_alone_are_attacked(command, here):
    import torch

    network = {}
    exec(NET, network)
    torch.save(network["MyNet"](10).state_dict(), "w.pth")
    done = command("evaluate.py", "--model", "mynet.py:MyNet", "--weights", "w.pth", *FEW)
    assert done.code == 0, done.err
    assert "MyNet w.pth on 4 images" in done.err
