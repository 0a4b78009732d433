"""Optimizers by timm's names: their figures, what decays, and what is refused."""

import pytest
import torch
from torch import nn

from robusttrain.config import presets
from robusttrain.config.checkpoints import as_before
from robusttrain.config.training import read_plan
from robusttrain.core.errors import OptionError, UserError
from robusttrain.models import TimmClassifier, TorchvisionClassifier
from robusttrain.models.defended import DefendedClassifier
from robusttrain.training import RobustTraining
from robusttrain.training.optimizers import make, undecayed

FIGURES = ("optimizer", "learning_rate", "momentum", "nesterov", "weight_decay")


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.Flatten(), nn.Linear(72, 10))


def training(**settings):
    return RobustTraining(DefendedClassifier(None, network()), 10, **settings)


def optimizer(**settings):
    module = training(**settings)
    return make(module.model, module.optimizing), module.model


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("", ("sgd", 0.1, 0.9, True, 0.0005)),
        ("--optimizer sgd", ("sgd", 0.1, 0.9, True, 0.0005)),
        ("--training fast --optimizer=sgd", ("sgd", 0.2, 0.9, False, 0.0005)),
        ("--training fast --optimizer adamw", ("adamw", 0.001, None, False, 0.01)),
        ("--optimizer adamw --optimizer.lr 3e-4", ("adamw", 0.0003, None, False, 0.01)),
        ("--optimizer.weight_decay 0.05 --optimizer=adamw", ("adamw", 0.001, None, False, 0.05)),
        ("--training.optimizer lars --training.learning_rate 1", ("lars", 1, 0.9, False, 0)),
        ("--training adversarial-adamw", ("adamw", 0.001, None, False, 0.05)),
        ("--training adversarial-adamw --optimizer sgd", ("sgd", 0.1, 0.9, False, 0.0005)),
    ],
)
def test_a_preset_keeps_the_figures_of_its_own_optimizer_alone(line, expected):
    settings = read_plan(line.split()).training
    assert tuple(settings[name] for name in FIGURES) == expected


def test_a_file_that_is_like_a_preset_with_another_optimizer(tmp_path):
    file = tmp_path / "mine.yaml"
    file.write_text("like: standard\ntraining: {optimizer: lamb, weight_decay: 0.02}\n")
    assert "learning_rate" not in presets.read("training", str(file))["training"]
    settings = read_plan(["--training", str(file)]).training
    assert tuple(settings[name] for name in FIGURES) == ("lamb", 0.001, None, False, 0.02)


def test_what_is_assumed_is_said_and_what_is_given_is_not(caplog):
    caplog.set_level("INFO", "robusttrain")
    read_plan(["--optimizer", "adamw", "--optimizer.lr", "0.002"])
    assert caplog.messages == [
        "optimizer adamw: weight decay 0.01, its own defaults, since none is given"
    ]
    caplog.clear()
    read_plan(["--optimizer", "sgd"])
    assert not caplog.messages


def test_options_and_schedule_by_their_short_names():
    line = "--optimizer adamw --optimizer.betas [0.9,0.95] --schedule poly --schedule.power 2"
    settings = read_plan([*line.split(), "--schedule.warmup_epochs=3"]).training
    assert settings["optimizer_options"] == {"betas": [0.9, 0.95]}
    assert (settings["schedule"], settings["warmup_epochs"]) == ("poly", 3)
    assert settings["schedule_options"] == {"power": 2}


def test_recipes_of_before_name_no_optimizer():
    assert not [name for name in as_before(read_plan([]).training) if "opti" in name]


def test_it_is_the_one_that_was_named_with_its_options():
    made, _ = optimizer(optimizer="adamw", optimizer_options={"betas": [0.8, 0.95]})
    assert type(made) is torch.optim.AdamW
    assert {tuple(group["betas"]) for group in made.param_groups} == {(0.8, 0.95)}
    made, _ = optimizer(optimizer="rmsprop", momentum=0.5, learning_rate=0.01)
    assert {group["momentum"] for group in made.param_groups} == {0.5}
    made, _ = optimizer(optimizer_options={"dampening": 0.1})
    assert (type(made), made.param_groups[0]["dampening"]) == (torch.optim.SGD, 0.1)


def test_biases_and_scales_do_not_decay_but_under_sgd():
    made, model = optimizer(optimizer="adamw", weight_decay=0.3)
    decays = {id(each): g["weight_decay"] for g in made.param_groups for each in g["params"]}
    expected = {id(each): 0.3 if each.dim() > 1 else 0 for each in model.parameters()}
    assert decays == expected
    made, model = optimizer(weight_decay=0.3)
    (group,) = made.param_groups
    assert (group["weight_decay"], len(group["params"])) == (0.3, len([*model.parameters()]))


def test_positions_of_a_vision_transformer_do_not_decay():
    network = TimmClassifier("vit_tiny_patch16_224", image_size=32)
    model = DefendedClassifier(None, network)
    assert undecayed(model) >= {
        "classifier.network.pos_embed",
        "classifier.network.cls_token",
    }
    module = RobustTraining(model, 10, optimizer="adamw")
    made = make(model, module.optimizing)
    left = {id(p) for g in made.param_groups if not g["weight_decay"] for p in g["params"]}
    assert id(network.network.pos_embed) in left
    assert id(network.network.blocks[0].mlp.fc1.weight) not in left


def test_nor_do_those_of_torchvisions():
    with torch.device("meta"):
        model = DefendedClassifier(None, TorchvisionClassifier("vit_b_32", image_size=32))
    assert undecayed(model) == {
        "classifier.network.class_token",
        "classifier.network.encoder.pos_embedding",
    }


def test_what_is_frozen_is_left_out():
    model = network()
    model[0].requires_grad_(False)
    module = RobustTraining(DefendedClassifier(None, model), 10, optimizer="adamw")
    made = make(module.model, module.optimizing)
    given = {id(each) for group in made.param_groups for each in group["params"]}
    assert given == {id(each) for each in model.parameters() if each.requires_grad}


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"optimizer": "adamww"}, r"^optimizer = 'adamww': there is no such.*did you mean adamw"),
        ({"optimizer": "adahessian"}, "needs second derivatives"),
        ({"optimizer": "adafactor"}, "^learning_rate = None: adafactor has none of its own"),
        ({"optimizer": "adamw", "momentum": 0.9}, "^momentum = 0.9: adamw has none"),
        ({"optimizer": "adamw", "nesterov": True}, "^nesterov = True: goes with sgd"),
        (
            {"optimizer": "adamw", "optimizer_options": {"beta": 1}},
            r"^optimizer_options.beta = 1: adamw has no such option",
        ),
        (
            {"optimizer": "adamw", "optimizer_options": {"betas": [2, 3]}},
            r"^optimizer_options = .*Invalid beta",
        ),
        ({"optimizer_options": {"lr": 1}}, "has an option of its own: training.learning_rate"),
        ({"schedule": "step"}, "^schedule_options.decay_epochs = None: step needs it"),
        ({"schedule": "poly", "schedule_options": {"powr": 1}}, "poly takes power, min_lr"),
        ({"schedule_options": {"power": 1}}, "one_cycle takes none of timm"),
        ({"schedule": "poly", "schedule_options": {"power": 0}}, "must be greater than 0"),
    ],
)
def test_what_cannot_work_is_refused_before_training(settings, told):
    with pytest.raises(OptionError, match=told):
        training(**settings)


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ("--optimizer adamww", r"--training.optimizer = 'adamww': .*did you mean adamw"),
        ("--optimizer.lr fast", r"--training.learning_rate: fast: must be a number"),
        ("--training.optimizer.lr fast", r"--training.learning_rate: fast: must be a number"),
        ("--schedule polly", r"--training.schedule: polly: must be one of .*poly"),
    ],
)
def test_a_line_that_cannot_work(line, told):
    with pytest.raises(UserError, match=told):
        read_plan(line.split())
