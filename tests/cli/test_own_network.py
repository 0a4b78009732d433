"""A network in a file of the user's: trained, kept, and attacked from another folder."""

import json
import re
import sys

import pytest
import torch

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


@pytest.mark.parametrize(
    ("line", "told"),
    [
        (
            'self.register_buffer("scale", torch.ones(1).expand(8))',
            r"model: classifier\.scale is an expanded tensor, .*\.expand\(\.\.\.\)\.clone\(\)",
        ),
        (
            "self.head = nn.LazyLinear(num_classes)",
            r"its part classifier\.head \(LazyLinear\) has no weights before its first images",
        ),
    ],
)
def test_a_network_that_no_checkpoint_could_give_back_is_refused(command, here, line, told):
    """The first was trained, and its checkpoint could not be read; the second was a traceback."""
    text = NET.replace("        self.layers", f"        {line}\n        self.layers")
    (here / "mynet.py").write_text(f"import torch\n{text}")
    done = command("train.py", "--model", "mynet.py:MyNet", "--name", "mine", *SHORT)
    assert done.code == 2
    assert re.search(told, done.err), done.err
    assert done.err.count("\n") == 1
    assert not (here / "checkpoints").exists()


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


DEFENSE = """
from robusttrain.defenses import Defense


class Halved(Defense):
    random = False

    def transform(self, images, rng):
        return (images + images.round()) / 2
"""


def test_a_network_and_a_defense_are_both_trusted_as_the_advice_says(command, here):
    (here / "mynetdefense.py").write_text(DEFENSE)
    parts = ["--model", "mynet.py:MyNet", "--defense", "mynetdefense.py:Halved"]
    trained = command("train.py", *parts, "--name", "both", *SHORT)
    assert trained.code == 0, trained.err
    advice = trained.err[trained.err.index("attack with ") :].splitlines()[0].split()[3:]
    assert advice.count("--trust") == 2
    attacked = command(*advice, *FEW, "--output", "out")
    assert attacked.code == 0, attacked.err
    one = [*advice[:-4], "--trust", "[mynet.py, mynetdefense.py]"]
    assert command(*one, *FEW, "--output", "out").code == 0
    repeated = command("evaluate.py", "--again", "out", *advice[-4:])
    assert repeated.code == 0, repeated.err
    refused = command(*advice[:-2], *FEW, "--output", "out")
    assert refused.code == 2
    assert refused.err.splitlines()[-1].endswith("(robusttrain.load(..., trust=[...]))"), (
        refused.err
    )


@pytest.mark.parametrize("name", ["mynet-2.py", "mynet v2.py", "mynet[1].py", "mynet.old.py"])
def test_a_file_may_have_any_name(command, here, name):
    (here / name).write_text(NET)
    network = ["--model", f"{name}:MyNet", "--model.width", 4]
    trained = command("train.py", *network, "--name", "mine", *SHORT)
    assert trained.code == 0, trained.err
    kept = here / "checkpoints" / "mine" / "version_0" / "last.ckpt"
    attacked = command("evaluate.py", "--checkpoint", kept, "--trust", name, *FEW)
    assert attacked.code == 0, attacked.err


def test_what_a_network_stumbles_over_when_it_is_built_is_one_line(command, here):
    (here / "mynet.py").write_text(NET.replace("super().__init__()", "super().__init__(); nothing"))
    refused = command("train.py", "--model", "mynet.py:MyNet", *SHORT)
    assert refused.code == 2, refused.err
    (line,) = refused.err.strip().splitlines()
    told = "--model = 'MyNet': cannot be built: NameError: name 'nothing' is not defined ("
    assert told in line
    assert line.endswith("mynet.py, line 7)")


def test_weights_for_other_classes_are_told_from_other_weights(command, here):
    torch.manual_seed(0)
    layer = {"num_classes": 3, "width": 4}
    own = classes.resolve(f"{here / 'mynet.py'}:MyNet")
    torch.save(own(**layer).state_dict(), here / "three.pth")
    network = ["--model", "mynet.py:MyNet", "--data", "digits", "--weights", "three.pth"]
    refused = command("evaluate.py", *network, "--model.width", 4, *FEW)
    assert refused.code == 2
    assert "layers.3.weight is (3, 4) in the file, (10, 4) in the model" in refused.err
    assert "; the data set has 10 classes: if the model was trained on others, name" in refused.err
    assert "--data.classes FILE" in refused.err
    refused = command("evaluate.py", *network, "--model.width", 5, *FEW)
    assert "layers.1.weight is (4, 256)" in refused.err
    # Of as many classes: another width alone.
    torch.save(own(num_classes=10, width=4).state_dict(), here / "ten.pth")
    refused = command("evaluate.py", *network[:-1], "ten.pth", "--model.width", 5, *FEW)
    assert "layers.3.weight is (10, 4) in the file, (10, 5) in the model" in refused.err
    assert "trained on others" not in refused.err


def test_options_of_a_defense_that_is_left_out_are_refused(command, here):
    options = ["--model", "mynet.py:MyNet", "--defense", "none", "--defense.sigma", "0.1"]
    for script in ("train.py", "evaluate.py"):
        refused = command(script, *options)
        assert refused.code == 2
        (line,) = refused.err.strip().splitlines()
        told = "--defense.sigma 0.1: --defense none leaves nothing that it could belong to"
        assert told in line


def test_pictures_of_a_network_without_parameters(command, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "light.py").write_text(
        "import torch\n\n\nclass Light(torch.nn.Module):\n"
        "    def __init__(self):\n        super().__init__()\n"
        "        self.register_buffer('shift', torch.arange(10.0))\n\n"
        "    def forward(self, images):\n"
        "        mean = images.mean((1, 2, 3))\n"
        "        return mean[:, None] * self.shift\n"
    )
    torch.save({"shift": torch.arange(10.0)}, "w.pth")
    network = ("--model", "light.py:Light", "--weights", "w.pth", "--data", "digits")
    done = command("evaluate.py", *network, "--export", "png", *FEW)
    assert done.code == 0, done.err
    assert len([*tmp_path.rglob("png/fgsm/*.png")]) == 4
