"""Fractions wherever a number is expected, and nowhere else."""

from typing import Annotated

import pytest

from robusttrain.config.evaluation import read_plan
from robusttrain.config.numbers import number, takes_numbers
from robusttrain.config.training import read_plan as read_training
from robusttrain.core.errors import UserError

NETWORK = ["--model", "mlp", "--data", "digits"]


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("8/255", 8 / 255),
        (" 8 / 255 ", 8 / 255),
        ("-0.5/4", -0.125),
        ("6/2", 3),
        ("8/0", "8/0"),
        ("a/b", "a/b"),
        ("results/8/255", "results/8/255"),
        (["1/2", {"a": "1/4"}], [0.5, {"a": 0.25}]),
        (None, None),
    ],
)
def test_fractions_are_read(text, value):
    assert number(text) == value


@pytest.mark.parametrize(
    ("hint", "whether"),
    [
        (float, True),
        (float | None, True),
        (Annotated[float, "at least 0"] | None, True),
        (list[float], True),
        (str, False),
        (str | float, False),
        (dict[str, str], False),
    ],
)
def test_numbers_are_told_from_text(hint, whether):
    assert takes_numbers(hint) is whether


@pytest.mark.parametrize("line", [["--epsilon", "8/255"], ["--epsilon=8/255"]])
def test_epsilon_may_be_a_fraction(line):
    plan = read_plan([*NETWORK, "--attack", "pgd", *line])
    assert plan.epsilon == 8 / 255
    assert plan.attacks["pgd"]["init_args"]["threat"]["init_args"]["epsilon"] == 8 / 255


def test_so_may_values_of_files_and_of_python():
    plan = read_plan(NETWORK, said=[{"epsilon": "8/255", "attack": "pgd"}])
    assert plan.epsilon == 8 / 255


def test_so_may_values_inside_of_attacks():
    plan = read_plan([*NETWORK, "--attack", "pgd", "--attack.step_size", "2/255"])
    arguments = plan.attacks["pgd"]["init_args"]
    # The preset's own step, a share of epsilon, gives way: one alone may be said.
    assert (arguments["step_size"], arguments["relative_step_size"]) == (2 / 255, None)
    named = {"mine": {"like": "pgd", "init_args": {"threat": {"init_args": {"epsilon": "1/8"}}}}}
    plan = read_plan(NETWORK, said=[{"attacks": named}])
    assert plan.attacks["mine"]["init_args"]["threat"]["init_args"]["epsilon"] == 1 / 8


def test_so_may_values_of_training_at_every_depth():
    plan = read_training(
        [
            *("--training", "adversarial", "--training.learning_rate", "1/8"),
            *("--training.objective.attack.step_size", "2/255", "--defense", "advtransform"),
            "--defense.radius=16/255",
        ]
    )
    assert plan.training["learning_rate"] == 1 / 8
    attack = plan.training["objective"]["init_args"]["attack"]["init_args"]
    assert attack["step_size"] == 2 / 255
    assert plan.defense["init_args"]["radius"] == 16 / 255


@pytest.mark.parametrize("depth", ["adversarial", "adversarial-awp"])
@pytest.mark.parametrize("said", [[], ["--training.{}.step_size", "null"]])
def test_a_relative_step_takes_the_place_of_the_preset_s_own(depth, said):
    """And null, which jsonargparse reads as text in a part that is inside of another."""
    where = "objective.objective.attack" if depth.endswith("awp") else "objective.attack"
    relative = [f"--training.{where}.relative_step_size", "1/4"]
    plan = read_training(["--training", depth, *relative, *(each.format(where) for each in said)])
    node = plan.training["objective"]
    while "attack" not in node["init_args"]:
        node = node["init_args"]["objective"]
    attack = node["init_args"]["attack"]["init_args"]
    assert (attack["step_size"], attack["relative_step_size"]) == (None, 0.25)
    assert attack["steps"] == 10, "what is not named stays"


def test_a_part_inside_of_another_may_be_nothing():
    network = ["--defense.model", "robusttrain.models.CifarResNet"]
    model = [*network, "--defense.model.widths", "[4,8]", "--defense.model.mean", "null"]
    plan = read_training(["--defense", "advtransform", *model])
    assert plan.defense["init_args"]["model"]["init_args"]["mean"] is None
    plain = ["--training", "budget", "--training.minutes", "null", "--robust.epsilon", "null"]
    assert read_training(plain).training["minutes"] is None


def test_a_training_has_its_time_or_its_epochs():
    epochs = ["--trainer.max_epochs", "3"]
    line = r"^--trainer.max_epochs 3: --training.minutes 20 chooses .* --training.minutes null$"
    with pytest.raises(UserError, match=line):
        read_training(["--training", "budget", *epochs])
    plain = ["--training", "budget", "--training.minutes", "null", "--robust.epsilon", "null"]
    assert read_training([*plain, *epochs]).trainer["max_epochs"] == 3


def test_a_folder_may_be_called_like_a_fraction():
    assert read_plan([*NETWORK, "--output", "8/255"]).output == "8/255"


def test_what_wants_whole_numbers_refuses_others():
    assert read_plan([*NETWORK, "--images", "100/2"]).images == 50
    with pytest.raises(UserError, match=r"^--images: 0.5: must be a whole number"):
        read_plan([*NETWORK, "--images", "1/2"])
