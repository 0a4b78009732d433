"""What tells two modules of equal weights apart."""

import copy
import importlib
import os
import re
import subprocess
import sys
from dataclasses import dataclass
from functools import partial

import numpy as np
import pytest
import torch
from torch import nn

from robusttrain.attacks import Linf, ProjectedGradient, Queried, Target
from robusttrain.evaluation import Scenario
from robusttrain.models import CifarResNet
from robusttrain.models.declared import as_module
from robusttrain.storage.libraries import is_library
from robusttrain.storage.made_of import code_in, made_of, told

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


FILES = {
    "theirhelp": "def scaled(images):\n    return {factor} * images\n\ntable = [{factor}]\n",
    "theirnet": """
from torch import nn
{how}

class Net(nn.Module):
    def forward(self, images):
        return {name}(images).flatten(1)
""",
}


@pytest.mark.parametrize(
    ("how", "name"),
    [
        ("from theirhelp import scaled", "scaled"),
        ("import theirhelp", "theirhelp.scaled"),
        ("import theirhelp as other\n\nchosen = other.scaled", "chosen"),
        (
            "from theirhelp import table\n\ndef by_table(images): return table[0] * images",
            "by_table",
        ),
    ],
)
def test_a_file_that_theirs_imports_counts(how, name, tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(sys, "dont_write_bytecode", True)

    def said(factor):
        for file, text in FILES.items():
            sys.modules.pop(file, None)
            (tmp_path / f"{file}.py").write_text(text.format(factor=factor, how=how, name=name))
        importlib.invalidate_caches()
        return made_of(importlib.import_module("theirnet").Net())

    try:
        assert said(1) == said(1) != said(2)
    finally:
        for file in FILES:
            sys.modules.pop(file, None)


network = nn.Linear(2, 2)
factor = 1.0


def through_the_network(images):
    return beside(network(images))


def beside(images):
    """They call each other."""
    return factor * images if factor else through_the_network(images)


class Client:
    def __init__(self):
        self.inner = nn.Linear(2, 2)

    def predict(self, images):
        return self.inner(images)


@pytest.mark.parametrize("model", [through_the_network, lambda images: beside(network(images))])
def test_what_a_function_reaches_counts(model, monkeypatch):
    before = made_of(as_module(model))
    assert made_of(as_module(model)) == before
    with monkeypatch.context() as changed:
        changed.setattr(sys.modules[__name__], "factor", 2.0)
        assert made_of(as_module(model)) != before
    other = copy.deepcopy(network)
    other.weight.data.neg_()
    monkeypatch.setattr(sys.modules[__name__], "network", other)
    assert made_of(as_module(model)) != before


def test_what_a_method_is_bound_to_counts():
    client = Client()
    before = made_of(as_module(client.predict))
    client.inner.weight.data.neg_()
    assert made_of(as_module(client.predict)) != before


def test_hooks_count():
    before = made_of(nn.Sequential(nn.Identity()))
    for register in ("register_forward_pre_hook", "register_forward_hook"):
        hooked = nn.Sequential(nn.Identity())
        getattr(hooked[0], register)(lambda *inputs: None)
        first = made_of(hooked)
        assert first == made_of(copy.deepcopy(hooked)) != before
        handle = getattr(hooked, register)(lambda *inputs: 2 * inputs[-1])
        assert made_of(hooked) != first
        handle.remove()
        assert made_of(hooked) == first


ATTACK = """
from dataclasses import dataclass
from robusttrain.attacks import Attack, Cost, Linf

@dataclass(frozen=True)
class Mine(Attack):
    threat: Linf = Linf(0.1)

    def cost(self):
        return Cost(0, 0)

    def run(self, source, images, labels, rng):
        return self.threat.project(images + {size}, images)
"""


def test_an_edited_attack_is_another_and_ours_are_none(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(sys, "dont_write_bytecode", True)

    def said(size):
        sys.modules.pop("theirattack", None)
        (tmp_path / "theirattack.py").write_text(ATTACK.format(size=size))
        importlib.invalidate_caches()
        return code_in(Scenario(importlib.import_module("theirattack").Mine(), Target()))

    try:
        assert said(0.1) == said(0.1) != said(0.2)
    finally:
        sys.modules.pop("theirattack", None)
    assert code_in(Scenario(ProjectedGradient(threat=Linf(0.1)), Target())) == ""


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


HASHED = """
import torch
from torch import nn
from robusttrain.storage.made_of import made_of

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.kinds, self.tools = {"a", "b", "c"}, torch.nn.functional
        self.chosen = lambda x: x in {"first", "second", "third"}
        self.many = [(lambda x, n=n: x + n) for n in range(20)]

print(made_of(Net()))
"""


@pytest.fixture(scope="module")
def said():
    """What two processes print, a line for HASHED and one for ADDRESSES: sets have another order in
    each, and objects other addresses.
    """
    return [
        subprocess.run(
            [sys.executable, "-c", HASHED + ADDRESSES],
            env={**os.environ, "PYTHONHASHSEED": str(seed)},
            capture_output=True,
            text=True,
            check=True,
        ).stdout.splitlines()
        for seed in (1, 2)
    ]


def test_it_is_the_same_in_every_process(said):
    """Sets have another order in each; a module of functions holds no numbers of the model."""
    (first, _), (second, _) = said
    assert first == second


def test_one_value_in_two_places_is_as_two_equal_values():
    pair = (1, [2, 3])
    shared, apart = nn.Identity(), nn.Identity()
    shared.first = shared.second = pair
    apart.first, apart.second = (1, [2, 3]), (1, [2, 3])
    assert made_of(shared) == made_of(apart)
    apart.second = (1, [2, 4])
    assert made_of(shared) != made_of(apart)


def test_each_of_many_functions_counts():
    """None is taken for one that was told before, whatever lies where in memory."""

    def made(last):
        module = nn.Identity()
        module.steps = [partial(pow, n) for n in (*range(30), last)]
        return module

    assert made_of(made(30)) == made_of(made(30)) != made_of(made(31))


def test_whose_code_it_is(tmp_path):
    assert is_library(torch.__file__)
    assert is_library(importlib.import_module("robusttrain").__file__)
    assert not is_library(tmp_path / "mine.py")


CACHE, CALLS, LOG = {}, 0, []


def counting(images):
    """Remembers, counts and logs: what a call leaves is no other model."""
    global CALLS
    CALLS += 1
    LOG.append(float(images.sum()))
    CACHE[len(images)] = images
    return images


def by_a_table(images):
    return TABLE["net"](images)


TABLE = {"net": network}


def test_what_calls_leave_behind_is_no_other_model(monkeypatch):
    model, seen = nn.Sequential(nn.Identity()), []
    model.register_forward_hook(lambda layer, given, out: seen.append(out))
    queried = Queried(counting)
    before = [made_of(each) for each in (as_module(counting), model, queried)]
    queried(torch.ones(2, 3))
    model(torch.ones(2, 3))
    assert [made_of(each) for each in (as_module(counting), model, queried)] == before
    table = made_of(as_module(by_a_table))
    monkeypatch.setitem(TABLE, "net", nn.ReLU())
    assert made_of(as_module(by_a_table)) != table


FACTORS = {"first": [1.0], 2: (3.0,)}


class Reading(nn.Module):
    def forward(self, images):
        out = FACTORS["first"][0] * images
        out[:, 0] = FACTORS.get(2)[0]
        return out


def test_a_table_that_is_only_read_counts(monkeypatch):
    """An edited script's or notebook's tables show nowhere else: its text is not compared."""
    models = as_module(by_factors), Reading()
    before = [made_of(each) for each in models]
    for model in models:
        model(torch.ones(2, 3))
    assert [made_of(each) for each in models] == before
    monkeypatch.setitem(FACTORS, "first", [2.0])
    assert all(made_of(each) != was for each, was in zip(models, before, strict=True))


def by_factors(images):
    return FACTORS["first"][0] * images


WRITTEN = {"stored": {}, "nested": {1: {}}, "called": [], "cut": [1, 2], "gone": {2: 0}}
STORED, NESTED, CALLED, CUT, GONE = WRITTEN.values()


def writing(images):
    STORED[len(images)] = images
    NESTED[1][len(images)] = 1.0
    CALLED.append(1.0)
    CUT[:1] = []
    GONE.pop(2, None)
    del GONE[3]
    return images


def test_a_container_that_is_written_to_in_any_way_does_not():
    GONE[3] = 0
    before = made_of(as_module(writing))
    writing(torch.ones(2, 3))
    assert WRITTEN == {
        "stored": STORED,
        "nested": {1: {2: 1.0}},
        "called": [1.0],
        "cut": [2],
        "gone": {},
    }
    assert made_of(as_module(writing)) == before


@dataclass(slots=True)
class Slot:
    width: int


def with_default(x, *, scale=1.0):
    return scale * x


class WithCounts(nn.Module):
    """Names of attributes mean nothing in a module of theirs."""

    counts = counted = 3

    def __init__(self, scale):
        super().__init__()
        self.scale = scale


def test_nobodys_attribute_is_passed_over_for_its_name():
    assert made_of(WithCounts(1)) != made_of(WithCounts(2))


def test_slots_and_defaults_count():
    def made(value):
        module = nn.Identity()
        module.value = value
        return made_of(module)

    assert made(Slot(3)) == made(Slot(3)) != made(Slot(4))
    before = made(with_default)
    with_default.__kwdefaults__["scale"] = 2.0
    assert made(with_default) != before
    with_default.__kwdefaults__["scale"] = 1.0


def test_a_long_chain_of_calls_comes_to_an_end():
    first, around = {"__name__": __name__, "f0": lambda x: x}, "def f{}(x):\n    return f{}(x)\n"
    exec("".join(around.format(n, n - 1) for n in range(1, 400)), first)
    module = nn.Identity()
    module.last = first["f399"]
    assert made_of(module) == made_of(module)


ADDRESSES = """
import numpy, torch
from torch import nn
from robusttrain.storage.made_of import made_of

class Point:
    def __init__(self, x):
        self.x = x

def added(x): return x
HANDLED = {torch.add: added, Point: 1}

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.table, self.points = HANDLED, {Point(1), Point(2), Point(3)}
        self.objects = numpy.array(["a", None, 3], dtype=object)

    def forward(self, x):
        return HANDLED[torch.add](x)

print(made_of(Net()), made_of(torch.compile(Net())))
"""


def test_no_address_counts(said):
    (_, first), (_, second) = said
    assert first == second


def test_a_folder_without_init_is_read_too(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    (tmp_path / "theirs").mkdir()
    (tmp_path / "theirnet.py").write_text("""
from torch import nn
import theirs.layers

class Net(nn.Module):
    def forward(self, images):
        return theirs.layers.scaled(images)
""")

    def said(factor):
        for name in ("theirs", "theirs.layers", "theirnet"):
            sys.modules.pop(name, None)
        text = f"def scaled(images):\n    return {factor} * images\n"
        (tmp_path / "theirs" / "layers.py").write_text(text)
        importlib.invalidate_caches()
        return made_of(importlib.import_module("theirnet").Net())

    try:
        assert said(1) == said(1) != said(2)
    finally:
        for name in ("theirs", "theirs.layers", "theirnet"):
            sys.modules.pop(name, None)


def test_what_is_told_of_a_function_is_no_text_of_it():
    """It stands in results.json, which goes from hand to hand."""
    assert told("plain") == "'plain'"
    assert re.fullmatch("[0-9a-f]{16}", told(through_the_network))
    assert told(object()) == ""


def test_whose_installed_code_it_is():
    for folder in ("/usr/lib/python3/dist-packages", "/home/u/.local/lib/python3.11/site-packages"):
        assert is_library(f"{folder}/torch/nn/modules/module.py")


def test_text_in_another_encoding_counts(convnet):
    """As of a file that a model remembers, whose folder is named in Latin-1."""
    found = set()
    for name in ("caf\udce9", "caf\udce8"):
        model = convnet()
        model.read_from = name
        found.add(made_of(model))
    assert len(found) == 2
