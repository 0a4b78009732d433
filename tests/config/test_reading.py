"""What a value says is read in one way, wherever it stands."""

import math

import pytest

from robusttrain.config import reading
from robusttrain.config.attacks import attack_nodes
from robusttrain.config.evaluation import read_plan
from robusttrain.core.errors import UserError


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("010", 10),
        ("-007", -7),
        ("1e-2", 0.01),
        ("1E+3", 1000.0),
        (".5", 0.5),
        ("3.", 3.0),
        ("-.inf", -math.inf),
        # What YAML 1.1 takes for 90, 16, 10 and a date.
        ("1:30", "1:30"),
        ("0x10", "0x10"),
        ("1_0", "1_0"),
        ("2026-11-30", "2026-11-30"),
        ("1.2.3", "1.2.3"),
        ("e5", "e5"),
        ("true", True),
        ("null", None),
    ],
)
def test_numbers_are_decimal(text, value):
    found = reading.read(text)
    assert found == value
    assert type(found) is type(value)
    assert reading.read(f"{{a: [{text}]}}") == {"a": [value]}


def test_a_radius_may_be_written_with_an_exponent(tmp_path):
    """It stayed a text in the plan while the attack had the number: `results.json` could not be
    read.
    """
    (tmp_path / "mine.yaml").write_text(
        "like: pgd\ninit_args: {threat: {class_path: robusttrain.attacks.Linf,"
        " init_args: {epsilon: 1e-2}}}\n"
    )
    given = attack_nodes(["pgd"], [("threat.epsilon", "1e-2")])["pgd"]
    filed = attack_nodes([str(tmp_path / "mine.yaml")])["mine"]
    for node in (given, filed):
        assert node["init_args"]["threat"]["init_args"]["epsilon"] == 0.01


def test_zeros_in_front_are_decimal_on_the_line_and_in_files(tmp_path):
    (tmp_path / "mine.yaml").write_text("seed: 010\n")
    assert read_plan(["--config", str(tmp_path / "mine.yaml"), "--attack", "pgd"]).seed == 10
    assert read_plan(["--seed", "010", "--attack", "pgd"]).seed == 10
    plan = read_plan(["--attack", "pgd", "--attack.steps", "0100"])
    assert plan.attacks["pgd"]["init_args"]["steps"] == 100


@pytest.mark.parametrize(
    ("option", "value", "key"),
    [
        ("--attacks", "{mine: {like: pgd}, mine: {like: fgsm}}", "mine"),
        ("--attacks", "{mine: {like: pgd, init_args: {steps: 50, steps: 1}}}", "steps"),
        ("--attack.threat", "{class_path: Linf, init_args: {epsilon: 0.1, epsilon: 0.2}}", "eps"),
    ],
)
@pytest.mark.parametrize("apart", [True, False])
def test_a_key_that_stands_twice_is_refused(option, value, key, apart):
    line = [option, value] if apart else [f"{option}={value}"]
    with pytest.raises(UserError, match=rf"{option} .*{key}\w* stands twice"):
        read_plan(["--attack", "pgd", *line] if option == "--attack.threat" else line)


@pytest.mark.parametrize("value", ["1:30", "0x10", "1_0"])
@pytest.mark.parametrize("option", ["--attack.steps", "--epsilon", "--seed", "--curve"])
def test_what_is_no_decimal_number_is_refused(option, value):
    """jsonargparse takes it for one, by YAML 1.1, wherever a number is wanted."""
    for line in ([option, value], [f"{option}={value}"]):
        with pytest.raises(UserError, match=f"'{value}': must be a decimal number"):
            read_plan(["--attack", "pgd", *line])


@pytest.mark.parametrize("line", [("pgd.steps", "steps"), ("steps", "pgd.steps")])
def test_what_is_said_of_one_attack_counts_more_than_what_is_said_of_all(line):
    """In either order."""
    said = [(key, "100" if key == "pgd.steps" else "5") for key in line]
    nodes = attack_nodes(["pgd", "bpda-i"], said)
    assert {name: node["init_args"]["steps"] for name, node in nodes.items()} == {
        "pgd": 100,
        "bpda-i": 5,
    }


@pytest.mark.parametrize("key", ["steps", "epsilon", "sourc"])
def test_arguments_beside_the_class_are_refused_by_name(key, tmp_path):
    (tmp_path / "mine.yaml").write_text(f"attacks: {{mine: {{like: pgd, {key}: 3}}}}\n")
    with pytest.raises(UserError, match=rf"mine\.{key} = 3: .*under init_args"):
        read_plan(["--config", str(tmp_path / "mine.yaml")])
