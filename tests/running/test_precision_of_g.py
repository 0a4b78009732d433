"""``--defense.precision auto``: measured once by a training, and kept."""

import copy

import pytest
import torch

from robusttrain.config.checkpoints import read_recipe
from robusttrain.core.errors import UserError
from robusttrain.evaluation.precision import Speeds
from robusttrain.running import precision_of_g
from robusttrain.running.precision_of_g import as_began, is_open, settle

FAST, SLOW = Speeds(1.0, 0.4, 0.99), Speeds(1.0, 3.0, 0.99)
SMALL = {
    "class_path": "robusttrain.models.CifarResNet",
    "init_args": {"num_classes": 10, "in_channels": 1, "widths": [4, 4, 4], "blocks": 1},
}


def g(precision="auto"):
    return {
        "class_path": "robusttrain.defenses.AdversarialTransform",
        "init_args": {"model": copy.deepcopy(SMALL), "steps": 1, "precision": precision},
    }


@pytest.fixture
def measured(monkeypatch):
    """What a measurement finds, for the test to choose; every measurement is counted."""
    found = {"speeds": FAST, "count": 0}

    def measure(f_b, images):
        found["count"] += 1
        assert images.dtype == torch.float32
        return found["speeds"]

    monkeypatch.setattr(precision_of_g, "measure_speeds", measure)
    return found


def test_each_g_under_a_node_is_settled(measured):
    node = {
        "class_path": "robusttrain.defenses.Chain",
        "init_args": {"defenses": [g(), g("float32"), g()]},
    }
    kept, said = copy.deepcopy(node), []
    assert is_open(node)
    settle(node, kept, torch.rand(2, 1, 16, 16), 1, said.append)
    assert measured["count"] == len(said) == 2
    assert "0.4 times" in said[0]
    for each in (node, kept):
        chosen = [part["init_args"]["precision"] for part in each["init_args"]["defenses"]]
        assert chosen == ["bfloat16", "float32", "bfloat16"]
    assert not is_open(node)
    assert not is_open(None)
    settle(node, kept, torch.rand(2, 1, 16, 16), 1, said.append)
    assert measured["count"] == 2


def test_several_processes_cannot_measure(measured):
    with pytest.raises(UserError, match=r"auto: 2 processes .* give float32 or bfloat16"):
        settle(g(), g(), torch.rand(2, 1, 16, 16), 2, print)
    assert not measured["count"]


def test_what_a_run_began_with():
    recipe = {"defense": g()}
    as_began(recipe, {"defense": g("bfloat16")})
    assert recipe["defense"]["init_args"]["precision"] == "bfloat16"
    recipe = {"defense": g("float32")}  # whoever says it means it
    as_began(recipe, {"defense": g("bfloat16")})
    assert recipe["defense"]["init_args"]["precision"] == "float32"
    as_began({"defense": None}, {"defense": None})


def test_training_keeps_it(measured, command, tmp_path):
    quick = tmp_path / "training" / "quick.yaml"  # the preset f_b trains adversarially for long
    quick.parent.mkdir()
    quick.write_text("like: standard\ntrainer: {max_epochs: 1}\n")
    options = ["--data", "digits", "--defense", "advtransform", "--defense.precision", "auto"]
    options += ["--defense.model.width", "4", "--defense.steps", "1", "--model.widths", "[4,4,4]"]
    options += ["--f_b_training", str(quick), "--robust.every", "0", "--pictures.images", "0"]
    options += ["--trainer.limit_train_batches", "1", "--trainer.limit_val_batches", "1"]
    places = ["--checkpoints", str(tmp_path / "kept"), "--logs", str(tmp_path / "logs")]
    options += ["--training.schedule", "constant"]  # another length is the same run
    done = command("train.py", *options, *places, "--trainer.max_epochs", "1")
    assert done.code == 0, done.err
    assert "precision: g differentiates f_b in bfloat16" in done.out + done.err
    (last,) = (tmp_path / "kept").glob("*/version_0/last.ckpt")
    assert read_recipe(last)["defense"]["init_args"]["precision"] == "bfloat16"

    measured["speeds"] = SLOW  # a run that goes on does not ask again
    more = ["--trainer.max_epochs", "2", "--ckpt_path", "last"]
    done = command("train.py", *options, *places, *more)
    assert done.code == 0, done.err
    assert measured["count"] == 1
    assert read_recipe(last)["defense"]["init_args"]["precision"] == "bfloat16"


def test_an_evaluation_refuses_it(command, tmp_path):
    target = ["--model", "resnet_small", "--defense", "advtransform", "--defense.precision", "auto"]
    options = ["--data", "digits", "--attack", "pgd", "--images", "4", "--output", tmp_path / "out"]
    done = command("evaluate.py", *target, *options)
    assert done.code == 2
    assert "--defense.precision auto" in done.err
    assert "give float32 or bfloat16" in done.err
    assert not (tmp_path / "out").exists()
