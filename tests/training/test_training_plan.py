"""The plan of a training: complete, checked, comparable, and the same after a file."""

import dataclasses
import inspect
import json

import pytest

from robusttrain.config.training import read_plan
from robusttrain.core.errors import OptionError, UserError
from robusttrain.training.plan import Averaging, TrainingPlan, Watching

LINE = [
    "--training",
    "adversarial",
    "--robust.every",
    "2",
    "--swa.start",
    "3",
    "--trainer.max_epochs",
    "5",
]


def test_a_command_line_ends_in_a_plan_without_gaps():
    plan = read_plan(LINE)
    assert plan.training["objective"]["class_path"] == "robusttrain.training.Adversarial"
    assert plan.training["inner_precision"] == "trainer"
    assert (plan.robust.every, plan.robust.images, plan.robust.names) == (2, 128, [])
    assert (plan.swa.start, plan.trainer["max_epochs"], plan.seed) == (3, 5, 0)
    assert plan == read_plan(LINE)
    assert plan != read_plan([*LINE, "--seed", "1"])
    assert read_plan([*LINE, "--robust.attacks", "[pgd, wt]"]).robust.names == ["pgd", "wt"]
    assert read_plan([*LINE, "--robust.attacks", "pgd"]).robust.names == ["pgd"]


def test_a_plan_survives_a_file():
    plan = read_plan(LINE)
    assert TrainingPlan.from_json(json.loads(json.dumps(plan.to_json()))) == plan


def test_every_field_is_said_in_the_help():
    for kind in (TrainingPlan, Averaging, Watching):
        for each in dataclasses.fields(kind):
            # Python 3.13 takes the indentation away by itself
            assert f"    {each.name}: " in inspect.getdoc(kind), each.name


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("robust: {every: null}", "^robust.every = None: must be a whole number"),
        ("swa: {start: 1, batches: null}", "^swa.batches = None: must be a whole number"),
        ("guard: {undo: null}", "^guard.undo = None: must be true or false"),
        ("estimate: null", "^estimate = None: must be true or false"),
        ("trianing: fast", "mine.yaml: trianing: there is no such option; did you mean training"),
    ],
)
def test_what_a_file_cannot_mean_is_refused(text, told, tmp_path):
    (tmp_path / "mine.yaml").write_text(text)
    with pytest.raises(UserError, match=told):
        read_plan(["--config", str(tmp_path / "mine.yaml")])
    assert read_plan(said=[{"swa": {"start": None}}]).swa.start is None


def test_what_cannot_work_is_refused():
    plan = read_plan(LINE)
    for wrong, told in (
        ({"seed": -1}, "--seed = -1"),
        ({"ema": 1.0}, "--ema = 1.0"),
        ({"early_stopping": -1}, "--early_stopping = -1"),
        ({"robust": Watching(every=-1)}, "--robust.every = -1"),
        ({"ema": 0.9}, "--swa.start = 3: excludes --ema"),
    ):
        with pytest.raises(OptionError, match=told):
            dataclasses.replace(plan, **wrong)
    with pytest.raises(UserError, match="colour is unknown"):
        TrainingPlan.from_json({**plan.to_json(), "colour": 1})
    with pytest.raises(UserError, match="missing"):
        TrainingPlan.from_json({})
