"""RobustBench's networks, our data and threats."""

import logging

import pytest

from robusttrain.config.zoo import fit_to_zoo
from robusttrain.core.errors import UserError

CIFAR = {"class_path": "robusttrain.data.CIFAR10"}
FOLDER = {"class_path": "robusttrain.data.ImageFolder", "init_args": {"root": "pictures"}}


@pytest.fixture
def fit(caplog):
    """What is filled in, and what is said."""
    caplog.set_level(logging.INFO, "robusttrain")

    def run(data=CIFAR, norm="linf", classes=10, **arguments):
        model = {
            "class_path": "robusttrain.models.RobustBenchClassifier",
            "init_args": {"name": "Some", **arguments},
        }
        caplog.clear()
        fit_to_zoo(model, data, norm, classes)
        chosen = model["init_args"]
        return (chosen["dataset"], chosen["threat_model"]), caplog.text

    return run


def test_data_set_and_threat_are_ours(fit):
    assert fit()[0] == ("cifar10", "Linf")
    found, said = fit(norm="l2")
    assert found == ("cifar10", "L2")
    assert "robustbench:Some: looked up among networks against L2, as the attacks are" in said
    cifar100 = {"class_path": "robusttrain.data.CIFAR100"}
    assert fit(data=cifar100, classes=100)[0] == ("cifar100", "Linf")


def test_another_threat_is_said(fit):
    found, said = fit(norm="l2", threat_model="Linf")
    assert found == ("cifar10", "Linf")
    assert "trained against Linf, and attacked here in L2" in said


def test_what_cannot_be_known_is_said(fit):
    found, said = fit(data=FOLDER)
    assert found == ("cifar10", "Linf")
    assert "trained on cifar10; whether pictures holds such images" in said
    assert "since nothing else was said" in fit(norm=None)[1]


@pytest.mark.parametrize(
    ("data", "arguments", "hint"),
    [
        (CIFAR, {"dataset": "imagenet"}, r"or --model\.dataset cifar10"),
        ({"class_path": "robusttrain.data.Digits"}, {}, "--data is Digits: change --data$"),
    ],
)
def test_another_data_set_is_refused(fit, data, arguments, hint):
    with pytest.raises(UserError, match=hint):
        fit(data=data, **arguments)


def test_other_networks_are_left_alone():
    model = {"class_path": "robusttrain.models.MLP"}
    fit_to_zoo(model, CIFAR, "linf", 10)
    assert model == {"class_path": "robusttrain.models.MLP"}
