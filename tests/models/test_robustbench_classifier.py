"""RobustBench's zoo, by a stand-in of its one function."""

import sys
from types import ModuleType

import pytest
import torch
from torch import nn

from robusttrain.core.errors import OptionError, UserError
from robusttrain.models import RobustBenchClassifier


@pytest.fixture
def zoo(monkeypatch, tmp_path):
    """`robustbench.utils`, whose networks are files; the calls."""
    calls = []
    package, utils = ModuleType("robustbench"), ModuleType("robustbench.utils")

    def load_model(model_name, model_dir="./models", dataset="cifar10", threat_model="Linf"):
        calls.append((model_name, dataset, threat_model))
        file = f"{model_dir}/{dataset}/{threat_model}/{model_name}.pt"
        model = nn.Sequential(nn.Flatten(), nn.Linear(3 * 4 * 4, 10))
        model.load_state_dict(torch.load(file, weights_only=True))
        return model.eval()

    utils.load_model = load_model
    monkeypatch.setitem(sys.modules, "robustbench", package)
    monkeypatch.setitem(sys.modules, "robustbench.utils", utils)
    for name in ("autoattack", "autoattack.state"):
        monkeypatch.setitem(sys.modules, name, ModuleType(name))
    (tmp_path / "cifar10" / "L2").mkdir(parents=True)
    network = nn.Sequential(nn.Flatten(), nn.Linear(3 * 4 * 4, 10))
    torch.save(network.state_dict(), tmp_path / "cifar10" / "L2" / "Some.pt")
    return tmp_path, network, calls


def test_a_network_of_the_zoo_answers_as_its_file_does(zoo):
    folder, network, calls = zoo
    model = RobustBenchClassifier("Some", threat_model="L2", model_dir=str(folder))
    images = torch.rand(2, 3, 4, 4)
    assert torch.equal(model(images), network(images))
    assert calls == [("Some", "cifar10", "L2")]
    assert (model.trained_on, model.defends, model.pretrained_classes) == ("cifar10", "L2", 10)
    assert model.pretrained_size == 32


def test_what_the_zoo_does_not_have_is_refused_in_one_line(zoo):
    with pytest.raises(UserError, match=r"robustbench:Some: cannot be had for cifar10, Linf") as no:
        RobustBenchClassifier("Some", model_dir=str(zoo[0]))
    assert "\n" not in str(no.value)


def test_the_number_of_classes_says_the_data_set_or_contradicts_it(zoo):
    with pytest.raises(OptionError, match="dataset = None: say what Some was trained on"):
        RobustBenchClassifier("Some", num_classes=7)
    with pytest.raises(OptionError, match="dataset = 'imagenet': has 1000 classes, and these data"):
        RobustBenchClassifier("Some", dataset="imagenet")
    assert zoo[2] == []


def test_without_the_package_the_line_says_how_to_get_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "robustbench.utils", None)
    with pytest.raises(UserError, match=r'pip install "robusttrain\[robustbench\]", then pip'):
        RobustBenchClassifier("Some")
