"""A run goes on with the steps, and by the figures, that it began with."""

import pytest
import torch

from robusttrain.config.training import read_plan
from robusttrain.core.errors import UserError
from robusttrain.running.resuming import refuse_other_processes, resumed
from robusttrain.running.training import Job

WORDS = ["--data", "digits", "--data.image_size", "8", "--model", "mlp"]
WORDS += ["--training.schedule", "constant"]


def going_on(folder, first, then):
    """What becomes of ``--ckpt_path`` with these options after those."""
    for words in (first, then):
        plan = read_plan([*WORDS, *words])
        recipe, file = Job(plan).recipe(), folder / "last.ckpt"
        if words is first:
            torch.save({"robusttrain": {**recipe, "plan": plan.to_json()}}, file)
    return resumed(str(file), folder, recipe, plan.to_json())


@pytest.mark.parametrize(
    ("then", "told"),
    [
        (["--robust.epsilon", "0.5"], "robust.epsilon = None, this one 0.5"),
        (["--robust.images", "64"], "robust.images = 128, this one 64"),
        (["--robust.attacks", "fgsm"], r"robust.attacks = \[\], this one \['fgsm'\]"),
        (["--robust.draws", "1"], "robust.draws = 3, this one 1"),
        (["--trainer.precision", "bf16-mixed"], "trainer.precision = '32-true', this one 'bf16"),
        (["--trainer.accumulate_grad_batches", "4"], "accumulate_grad_batches = 1, this one 4"),
        (["--trainer.gradient_clip_val", "0.1"], "trainer.gradient_clip"),
        (["--trainer.limit_val_batches", "1"], "limit_val_batches = '1.0', this one '1'"),
        (["--trainer.sync_batchnorm", "true"], "sync_batchnorm = False, this one True"),
    ],
)
def test_other_steps_or_figures_are_refused(then, told, tmp_path):
    with pytest.raises(UserError, match=told):
        going_on(tmp_path, [], then)


@pytest.mark.parametrize(
    "schedule",
    [
        ["--training.schedule", "piecewise", "--training.milestones", "[2]"],
        ["--training.schedule", "step", "--schedule.decay_epochs", "2"],
        ["--training.warmup_epochs", "2"],
    ],
)
def test_epochs_of_a_schedule_keep_their_length(schedule, tmp_path):
    """They are steps since the run began: with other ones, the rate would drop in another epoch."""
    few = [*schedule, "--trainer.limit_train_batches", "5"]
    with pytest.raises(UserError, match=r"limit_train_batches = '1\.0', this one '5'"):
        going_on(tmp_path, schedule, few)
    longer = ["--trainer.max_epochs", "90"]
    assert going_on(tmp_path, few, [*few, *longer]) == tmp_path / "last.ckpt"


@pytest.mark.parametrize(
    ("first", "then"),
    [
        ([], ["--trainer.precision", "32-true", "--trainer.max_epochs", "9"]),
        ([], ["--trainer.limit_train_batches", "5"]),
        ([], ["--trainer.accumulate_grad_batches", "1", "--pictures.every", "9"]),
        (["--robust.every", "0"], ["--robust.every", "0", "--robust.images", "64"]),
        (["--robust.every", "2"], []),
        (["--trainer.precision", "bf16-mixed"], ["--trainer.precision", "bf16"]),
        ([], ["--robust.attacks", "pgd-quick"]),
        ([], ["--trainer.limit_val_batches", "1.0"]),
        (["--trainer.limit_val_batches", "0"], []),
    ],
)
def test_the_same_under_another_name_goes_on(first, then, tmp_path):
    assert going_on(tmp_path, first, then) == tmp_path / "last.ckpt"


@pytest.mark.parametrize(
    ("recipe", "began"),
    [
        ({"processes": 2}, 2),
        ({"processes": 1, "plan": {"trainer": {"devices": "auto"}}}, 1),
        ({"plan": {"trainer": {"devices": "2", "num_nodes": 3}}}, 6),  # of earlier versions
        ({"plan": {"trainer": {"devices": 1}}}, 1),
        ({"plan": {"trainer": {"devices": "auto"}}}, None),
        ({}, None),
    ],
)
def test_another_number_of_processes_is_refused(recipe, began, tmp_path):
    """Two processes take half as many steps an epoch as one, each with twice the images."""
    plan, file = read_plan(WORDS), tmp_path / "last.ckpt"
    torch.save({"robusttrain": {**Job(plan).recipe(), "plan": plan.to_json(), **recipe}}, file)
    refuse_other_processes(None, 4)
    for now in (1, 2, 6):
        if began in (None, now):
            refuse_other_processes(file, now)
        else:
            told = rf"that run had {began} process(es)?, this one {now} .*: give the same --tr"
            with pytest.raises(UserError, match=told):
                refuse_other_processes(file, now)


@pytest.mark.parametrize("plan", [[], {"trainer": 3}, {"robust": "all"}, {"training": [1]}])
def test_a_plan_that_is_none_is_told_in_one_line(plan, tmp_path):
    now = read_plan(WORDS)
    recipe, file = Job(now).recipe(), tmp_path / "last.ckpt"
    torch.save({"robusttrain": {**recipe, "plan": plan or [1]}}, file)
    with pytest.raises(UserError, match="is no checkpoint of robusttrain"):
        resumed(str(file), tmp_path, recipe, now.to_json())
