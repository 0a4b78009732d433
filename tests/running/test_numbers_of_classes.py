"""Checkpoints that give the data's classes other numbers: as targets in Python, as attackers."""

import pytest
import torch
from torch import nn

import robusttrain
from robusttrain.attacks import Ensemble, Linf, OtherModel, ProjectedGradient, Target
from robusttrain.config.checkpoints import read_recipe
from robusttrain.core.errors import UserError
from robusttrain.data import Digits
from robusttrain.evaluation import Engine, Scenario
from robusttrain.running.class_numbers import refuse_other_numbers

pytestmark = pytest.mark.filterwarnings("ignore")
NAMES = [*map(str, range(10))]


@pytest.fixture
def swapped(tmp_path):
    """The network of digits-standard in a checkpoint that calls its class 1 "2", and 2 "1"."""
    network = robusttrain.load("digits-standard")
    state = {f"model.{name}": values for name, values in network.state_dict().items()}
    classes = ["0", "2", "1", *NAMES[3:]]
    recipe = {**read_recipe("digits-standard"), "classes": classes}
    torch.save({"robusttrain": recipe, "state_dict": state}, tmp_path / "swapped.ckpt")
    return tmp_path / "swapped.ckpt"


def test_a_loaded_model_knows_the_names_of_its_classes(swapped):
    assert robusttrain.load("digits-standard").class_names == tuple(NAMES)
    assert robusttrain.load(swapped).class_names[:3] == ("0", "2", "1")


@pytest.mark.parametrize("read_before", [False, True])
def test_python_refuses_images_that_a_loaded_model_numbers_otherwise(swapped, read_before):
    data = Digits()
    if read_before:
        data.setup("test")
    with pytest.raises(UserError, match="class 1 is '1', and in the checkpoint '2'"):
        robusttrain.evaluate(robusttrain.load(swapped), data, attacks="fgsm", count=8)
    found = robusttrain.evaluate(
        robusttrain.load("digits-standard"), data, attacks="fgsm", count=8, audit=False
    )
    assert found.clean.accuracy > 0.8


def test_an_attackers_model_that_numbers_classes_otherwise_is_refused(command, swapped, tmp_path):
    done = command(
        *("evaluate.py", "--checkpoint", "digits-standard", "--attack", "transfer-standard"),
        *("--attack.source.path", swapped, "--images", 8, "--output", tmp_path / "o"),
    )
    assert done.code == 2
    assert "attack transfer-standard: in " in done.err
    assert "swapped.ckpt class 1 is '2', and in the data set '1': give a model" in done.err
    assert not (tmp_path / "o").exists()


def test_models_inside_a_node_are_found(swapped):
    def refuse(source, names=NAMES):
        refuse_other_numbers({"mine": source}, Engine(nn.Flatten(), {}), names)

    inside = {"init_args": {"sources": [{"init_args": {"path": str(swapped)}}]}}
    with pytest.raises(UserError, match="attack mine: in .*swapped.ckpt class 1 is '2'"):
        refuse({"class_path": "an.Attack", "source": inside})
    refuse({"source": {"path": "surrogate:standard"}})
    refuse({"source": {"path": "digits-standard"}})
    refuse({"source": {"path": str(swapped)}}, ["a", "b"])


@pytest.mark.parametrize("several", [False, True])
def test_models_that_python_brings_are_found(swapped, several):
    other = OtherModel(robusttrain.load(swapped))
    source = Ensemble([other, Target()]) if several else other
    attacks = {"mine": Scenario(ProjectedGradient(1, 0.01, threat=Linf(0.05)), source)}
    with pytest.raises(UserError, match="mine: in the attacker's model class 1 is '2', and in the"):
        robusttrain.evaluate(
            robusttrain.load("digits-standard"), Digits(), attacks=attacks, count=8, audit=False
        )
