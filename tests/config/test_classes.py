"""Classes by name: those of files, nearest names, and what a checkpoint may name."""

import importlib
import inspect
import sys
from typing import Protocol, get_type_hints

import pytest
import torch
from torch import nn

from robusttrain.config import classes
from robusttrain.config.build import build, fit_to_data, trusted_nodes
from robusttrain.config.classes import (
    OURS,
    declare,
    defaults_of,
    importable,
    parts_of,
    recorded,
    resolve,
    to_be_filled,
)
from robusttrain.core.errors import UserError
from robusttrain.data import Facts

NET = """
from subprocess import run
import torch
from torch import nn


class MyNet(nn.Module):
    def __init__(self, num_classes: int = 10, width: int = 8) -> None:
        super().__init__()
        self.layer = nn.Linear(4, num_classes)

    def forward(self, images):
        return self.layer(images.flatten(1))


class Wants(MyNet):
    def __init__(self, num_classes, **more):
        super().__init__(num_classes, **more)


def make(num_classes=10):
    return MyNet(num_classes)


def no_module(num_classes=10):
    return "nothing"
"""


@pytest.fixture(autouse=True)
def _as_before(monkeypatch):
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.setattr(classes, "_files", {})
    before = {*sys.modules}
    yield
    for name in {*sys.modules} - before:
        if name.startswith(("mynet", "json_", "other")):
            del sys.modules[name]


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "mynet.py"
    path.write_text(NET)
    return path


def test_a_class_of_a_file_is_recorded_by_the_files_full_path(file, monkeypatch):
    monkeypatch.chdir(file.parent)
    assert importable("mynet.py:MyNet") == "mynet.MyNet"
    assert recorded("mynet.MyNet") == f"{file}:MyNet"
    assert resolve(f"{file}:MyNet") is resolve("mynet.py:MyNet")
    assert recorded("mynet.py:MyNet") == f"{file}:MyNet"
    assert recorded("torch.nn.Linear") == "torch.nn.Linear"


def test_a_file_does_not_take_another_modules_name(tmp_path):
    path = tmp_path / "json.py"
    path.write_text(NET)
    name = importable(f"{path}:MyNet")
    assert name.startswith("json_")
    assert recorded(name) == f"{path}:MyNet"
    import json

    assert hasattr(json, "loads")


def test_what_lies_beside_a_file_is_found(file):
    (file.parent / "other_layers.py").write_text("from torch.nn import Identity as Mine\n")
    file.write_text("from other_layers import Mine as MyNet\n")
    assert resolve(f"{file}:MyNet") is nn.Identity


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("{file}:MyNett", r"no MyNett in mynet; did you mean .*mynet\.py:MyNet\?"),
        ("{folder}/nothing.py:MyNet", "there is no such file"),
        ("{folder}/mynett.py:MyNet", r"there is no such file; did you mean .*mynet\.py\?"),
        ("{file}:nn", "is a module"),
        ("torch.nn.Linaer", r"no Linaer in torch\.nn; did you mean torch\.nn\.Linear\?"),
        ("torch.n.Linear", r"no module torch\.n; did you mean torch\.nn\.Linear\?"),
        ("torhc.nn.Linear", r"no module torhc; did you mean torch\.nn\.Linear\?"),
        ("zzzzqq.Linear", r"no module zzzzqq$"),
    ],
)
def test_a_wrong_name_says_what_is_missing_and_the_nearest(file, name, said):
    with pytest.raises(UserError, match=said) as caught:
        resolve(name.format(file=file, folder=file.parent))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("import nowhere_at_all", "No module named 'nowhere_at_all'"),
        ("def f(:", r"SyntaxError: .*line 1"),
        ("raise RuntimeError('first\\nsecond')", "RuntimeError: first$"),
    ],
)
def test_a_file_that_cannot_be_run_says_why_in_one_line(file, content, said):
    file.write_text(content)
    with pytest.raises(UserError, match=said):
        resolve(f"{file}:MyNet")
    with pytest.raises(UserError, match=said):  # nothing half loaded is left
        resolve(f"{file}:MyNet")


def test_functions_that_make_modules_are_built_as_classes_are(file):
    node = {"class_path": f"{file}:make", "init_args": {}}
    fit_to_data(node, Facts(7, 1, 2), "model")
    assert build(node, "model", kind=nn.Module)(torch.rand(2, 1, 2, 2)).shape == (2, 7)
    with pytest.raises(UserError, match=r"no_module is not a Module: .* returned a str"):
        build({"class_path": f"{file}:no_module"}, "model", kind=nn.Module)


def test_what_wants_the_number_of_classes_gets_that_of_the_data(file):
    wants = resolve(f"{file}:Wants")
    declare(wants)
    assert to_be_filled(wants) == {"num_classes": 0}
    node = {"class_path": f"{file}:Wants", "init_args": to_be_filled(wants)}
    fit_to_data(node, Facts(7, 1, 2), "model")
    assert node["init_args"] == {"num_classes": 7}


def test_arguments_that_are_handed_on_count_too(file):
    assert defaults_of(resolve(f"{file}:Wants"))["width"] == 8
    from torchvision.models import resnet18

    assert defaults_of(resnet18)["num_classes"] == 1000


def test_a_checkpoints_file_is_run_only_where_the_user_names_it(file, tmp_path, monkeypatch):
    node = {"class_path": f"{file}:MyNet", "init_args": {}}
    file.write_text("raise SystemExit('was run')")
    with pytest.raises(UserError, match=r"file that is not trusted.*--trust .*mynet\.py"):
        build(node, "model", ("robusttrain", "mynet"), nn.Module)
    monkeypatch.chdir(tmp_path.parent)
    with pytest.raises(UserError, match=r"--trust mynet\.py: there is no such file here; MyNet"):
        build(node, "model", ("robusttrain", "mynet.py"), nn.Module)


def test_of_two_files_of_that_name_the_users_own_is_run(file, tmp_path):
    own = tmp_path / "mine" / "mynet.py"
    own.parent.mkdir()
    own.write_text(NET)
    file.write_text("raise SystemExit('was run')")  # what a stranger's checkpoint names
    node = {"class_path": f"{file}:MyNet", "init_args": {}}
    assert trusted_nodes([node], [str(own)])[0]["class_path"] == f"{own}:MyNet"
    assert type(build(node, "model", (str(own),), nn.Module)).__name__ == "MyNet"


@pytest.mark.parametrize("name", ["run", "no_module", "nn"])
def test_a_trusted_file_offers_its_own_networks_alone(file, name):
    described = {"class_path": f"{file}:{name}", "init_args": {}}
    with pytest.raises(UserError):
        build(described, "model", (str(file),), nn.Module)


@pytest.mark.parametrize(
    "class_path", ["robusttrain.storage.files.write_whole", "robusttrain.models.fast_copy"]
)
def test_functions_of_this_package_are_nothing_that_a_checkpoint_may_name(class_path):
    with pytest.raises(UserError, match="is not a Module"):
        build({"class_path": class_path}, "model", ("robusttrain",), nn.Module)


def test_a_string_in_the_place_of_a_part_is_a_class_and_has_to_be_trusted():
    """``threat: evil.Ball`` of somebody's results.json was imported, and so ran its module."""
    square = {"class_path": "robusttrain.attacks.Square"}
    evil = square | {"init_args": {"threat": "evil.Ball", "queries": 50}}
    several = {"class_path": "robusttrain.attacks.Several", "init_args": {"attacks": ["evil.Ball"]}}
    spelt = square | {"init_args": {"threat": '{"class_path": "evil.Ball"}'}}
    source = square | {"source": "evil.Ball"}
    for node in (evil, several, spelt, source, {"pgd": [evil]}):
        with pytest.raises(UserError, match=r"evil\.Ball.* not trusted"):
            trusted_nodes(node, ["robusttrain"])
    ours = trusted_nodes(square | {"init_args": {"threat": "L2"}}, ["robusttrain"])
    assert ours["init_args"]["threat"] == "robusttrain.attacks.L2"
    plain = {"class_path": "robusttrain.attacks.Checkpoint", "init_args": {"path": "a/b.ckpt"}}
    assert trusted_nodes(plain, ["robusttrain"]) == plain


def test_what_is_a_part_is_known_of_all_classes_of_ours():
    """Annotations that cannot be read, and ``**kwargs``, would hide parts from `trusted_nodes`."""
    for place in OURS:
        module = importlib.import_module(f"robusttrain.{place}")
        for name, each in vars(module).items():
            ours = inspect.isclass(each) and each.__module__.startswith("robusttrain.")
            if not ours or inspect.isabstract(each) or Protocol in each.__mro__:
                continue
            get_type_hints(each.__init__)
            kinds = {one.kind for one in inspect.signature(each).parameters.values()}
            assert inspect.Parameter.VAR_KEYWORD not in kinds, name
    assert parts_of("robusttrain.attacks.Several") == {"attacks", "threat"}
    assert parts_of("robusttrain.attacks.Checkpoint") == set()
