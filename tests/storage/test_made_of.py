"""What tells two modules of equal weights apart."""

import copy
import importlib
import sys
from dataclasses import dataclass
from functools import partial

import numpy as np
import pytest
import torch
from torch import nn

from robusttrain.models import CifarResNet
from robusttrain.storage.made_of import is_library, made_of

NET = """
from torch import nn

def scaled(images):
    return {factor} * images

class Net(nn.Module):
    def forward(self, images):
        return scaled(images).flatten(1)
"""


@pytest.fixture
def written(tmp_path, monkeypatch):
    """A network from a file of the user's, with a factor in a function beside its class."""
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(sys, "dont_write_bytecode", True)

    def write(factor):
        (tmp_path / "theirnet.py").write_text(NET.format(factor=factor))
        sys.modules.pop("theirnet", None)
        importlib.invalidate_caches()
        return importlib.import_module("theirnet").Net()

    yield write
    sys.modules.pop("theirnet", None)


def test_an_edited_file_is_another_model(written):
    assert made_of(written(1)) == made_of(written(1))
    assert made_of(written(1)) != made_of(written(2))


def test_a_copy_is_the_same_and_running_it_changes_nothing():
    network = CifarResNet(widths=[4, 8], blocks=1).eval()
    before = made_of(network)
    network(torch.rand(2, 3, 16, 16))
    network.train().requires_grad_(False)
    assert made_of(network) == made_of(copy.deepcopy(network)) == before


@pytest.mark.parametrize(
    "change",
    [
        lambda module: setattr(module, "scale", 2.0),
        lambda module: setattr(module, "scales", [1, {"a": torch.ones(2)}]),
        lambda module: setattr(module, "inner", lambda x: x + 1),
        lambda module: setattr(module, "array", np.ones(2)),
        lambda module: setattr(module, "part", partial(pow, 3)),
        lambda module: setattr(module, "config", Config(2)),
        lambda module: setattr(module, "names", {"a", "c"}),
        lambda module: module.register_buffer("shift", torch.ones(1), persistent=False),
        lambda module: module.append(nn.ReLU()),
        lambda module: setattr(module[0], "stride", (2, 2)),
    ],
    ids=[
        *("number", "list", "function", "array", "partial", "config", "set", "buffer", "part"),
        "of torch's own",
    ],
)
def test_each_of_these_counts(change):
    def made():
        module = nn.Sequential(nn.Conv2d(1, 2, 3), nn.Flatten())
        module.scale, module.scales = 1.0, [1, {"a": torch.zeros(2)}]
        module.inner = lambda x: x
        module.array, module.part = np.zeros(2), partial(pow, 2)
        module.config, module.names = Config(1), {"a", "b"}
        module.register_buffer("shift", torch.zeros(1), persistent=False)
        return module

    module = made()
    assert made_of(module) == made_of(made())
    change(module)
    assert made_of(module) != made_of(made())


@dataclass
class Config:
    """An object of the user's own."""

    width: int


def test_what_holds_itself_comes_to_an_end():
    module = nn.Identity()
    module.self_in_a_list = [module]
    module.ring = []
    module.ring.append(module.ring)
    module.back = lambda: module
    assert made_of(module) == made_of(module)


def test_whose_code_it_is(tmp_path):
    assert is_library(torch.__file__)
    assert is_library(importlib.import_module("robusttrain").__file__)
    assert not is_library(tmp_path / "mine.py")
