"""The plan of an evaluation: complete, checked, comparable, and the same after a file."""

import dataclasses
import inspect
import json

import pytest

from robusttrain.config.evaluation import read_plan
from robusttrain.core.errors import OptionError, UserError
from robusttrain.evaluation.plan import EvaluationPlan

MODEL = {"class_path": "robusttrain.models.MLP", "init_args": {}}
DATA = {"class_path": "robusttrain.data.Digits", "init_args": {}}
PLAN = EvaluationPlan(MODEL, {"pgd": {"class_path": "robusttrain.attacks.ProjectedGradient"}}, DATA)
LINE = [
    "--model",
    "mlp",
    "--attack",
    "pgd-quick",
    "--attack.steps",
    "3",
    "--epsilon",
    "0.1",
    "--images",
    "7",
]


def test_a_command_line_ends_in_a_plan_without_gaps():
    plan = read_plan(LINE)
    assert plan.attacks["pgd-quick"]["init_args"]["steps"] == 3
    assert plan.attacks["pgd-quick"]["init_args"]["threat"]["init_args"]["epsilon"] == 0.1
    assert plan.data["class_path"] == "robusttrain.data.Digits"
    assert (plan.images, plan.draws, plan.precision, plan.asked) == (7, 10, "auto", ["pgd-quick"])
    assert plan == read_plan(LINE)
    assert plan != read_plan([*LINE, "--seed", "1"])


@pytest.mark.parametrize("data", ["imagefolder", "table", "imagenet"])
def test_how_pictures_are_prepared_is_in_a_plan_where_it_is_said(data):
    """Points of studies were measured before these options came, and are known by their plans."""
    line = ["--model", "mlp", "--data", data, "--data.image_size", "8"]
    said = ["--data.resize", "9", "--data.interpolation", "bilinear"]
    there = read_plan(line).data["init_args"]
    assert "interpolation" not in there
    assert ("resize" in there) == (data == "imagenet")  # which had it from the beginning
    assert read_plan([*line, *said]).data["init_args"] == {
        **there,
        "resize": 9,
        "interpolation": "bilinear",
    }


def test_a_plan_survives_a_file():
    for plan in (PLAN, read_plan(LINE)):
        assert EvaluationPlan.from_json(json.loads(json.dumps(plan.to_json()))) == plan


def test_every_field_is_said_in_the_help():
    documented = inspect.getdoc(EvaluationPlan)  # 3.13 takes the indentation away by itself
    for each in dataclasses.fields(EvaluationPlan):
        assert f"    {each.name}: " in documented, each.name


@pytest.mark.parametrize(
    "line", ["draws: null", "audit: null", "save_verdicts: null", "certify_alpha: null"]
)
def test_null_for_what_has_no_null_is_refused(line, tmp_path):
    """It was a traceback, or false: ``audit: null`` left out the audit without a word."""
    (tmp_path / "mine.yaml").write_text(line)
    option = line.partition(":")[0]
    with pytest.raises(OptionError, match=f"^{option} = None: must be (a|true)"):
        read_plan([*LINE, "--config", str(tmp_path / "mine.yaml")])
    with pytest.raises(OptionError, match=f"^{option} = None"):
        dataclasses.replace(PLAN, **{option: None})
    assert dataclasses.replace(PLAN, images=None, epsilon=None, export=None).images is None


def test_a_key_of_a_file_that_is_no_option_names_the_file(tmp_path):
    file = tmp_path / "mine.yaml"
    for key, hint in (("imges", "did you mean images?"), ("xyzzy", "--help lists the options")):
        file.write_text(f"{key}: 5")
        with pytest.raises(UserError) as caught:
            read_plan([*LINE, "--config", str(file)])
        told = f"--config {file}: {key}: there is no such option; {hint}"
        assert str(caught.value).replace("\\", "") == told


def test_what_cannot_work_is_refused():
    for wrong, told in (
        ({"draws": 0}, "--draws = 0"),
        ({"seed": -1}, "--seed = -1"),
        ({"surrogate_epochs": 0}, "--surrogate_epochs = 0"),
        ({"audit_images": 1}, "--audit_images = 1"),
    ):
        with pytest.raises(OptionError, match=told):
            dataclasses.replace(PLAN, **wrong)
    with pytest.raises(UserError, match="needs the audit"):
        dataclasses.replace(PLAN, strict=True, audit=False)
    with pytest.raises(UserError, match="colour is unknown"):
        EvaluationPlan.from_json({**PLAN.to_json(), "colour": 1})
    with pytest.raises(UserError, match=r"^model = None: must be a mapping"):
        dataclasses.replace(PLAN, model=None)
    with pytest.raises(UserError, match="^plan: model is missing"):
        EvaluationPlan.from_json({"attacks": {}, "data": DATA})
    with pytest.raises(dataclasses.FrozenInstanceError):
        PLAN.seed = 2
