"""A defense before a checkpoint that has none: the line says what to type, and that works."""

import shlex

import pytest

from robusttrain.config.evaluation import read_plan
from robusttrain.core.errors import UserError

OWN = """
from robusttrain.defenses import Defense


class Quantise(Defense):
    def transform(self, images, rng):
        return (8 * images).round() / 8
"""


def test_the_line_names_the_options_that_put_it_there(tmp_path):
    file = tmp_path / "mydefense.py"
    file.write_text(OWN)
    own = ["--defense", f"{file}:Quantise", "--attack", "pgd-quick", "--output", str(tmp_path)]
    with pytest.raises(UserError, match="digits-standard has none") as caught:
        read_plan(["--checkpoint", "digits-standard", *own])
    told = str(caught.value)
    assert "--defense.radius" not in told
    line = told.partition(" give ")[2].partition(" in place of --checkpoint")[0]
    plan = read_plan([*shlex.split(line), *own])
    assert plan.defense["class_path"].endswith("Quantise")
    assert plan.data["class_path"].endswith(".Digits")
    assert plan.data["init_args"]["image_size"] == 16
    assert plan.weights == "digits-standard"
    assert plan.model["init_args"]["widths"] == [16, 32, 64]


def test_one_that_has_a_defense_is_told_to_change_it(tmp_path):
    with pytest.raises(UserError, match=r"has its own; change its values \(--defense"):
        read_plan(["--checkpoint", "digits-g", "--defense", "jpeg", "--attack", "pgd-quick"])
