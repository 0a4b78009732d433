"""A training of a stated time in several processes: the first one measures, all take its choice."""

import json
import os

import pytest
from pytorch_lightning.plugins.environments import LightningEnvironment

from robusttrain.config.trainer import trainer_from
from robusttrain.config.training import read_plan
from robusttrain.core.errors import UserError
from robusttrain.running import budget
from robusttrain.running.training import Job
from robusttrain.training.cost import estimate

LINE = [
    *("--training", "budget", "--data", "digits", "--model", "mlp", "--data.batch_size", "100"),
    *("--training.minutes", "0.05", "--trainer.accelerator", "cpu", "--robust.every", "0"),
]
TWO = [*LINE, "--trainer.devices", "2", "--trainer.strategy", "ddp"]


def test_the_first_process_chooses_for_all(monkeypatch):
    monkeypatch.setenv(budget.HANDED_ON, "")
    seen = []
    monkeypatch.setattr(
        budget,
        "measured",
        lambda job, data: seen.append(job) or budget.Pace(0.01, 7, 0.0, 1),
    )
    plan = read_plan(TWO)
    chosen = budget.within(plan, Job, lambda line: None)
    assert chosen != plan
    assert seen
    seen.clear()
    monkeypatch.setattr(budget, "first_process", lambda: False)
    assert budget.within(plan, Job, lambda line: None) == chosen
    assert not seen
    assert (
        json.loads(os.environ[budget.HANDED_ON])["trainer"]["max_epochs"]
        == chosen.trainer["max_epochs"]
    )


def test_processes_that_nobody_chooses_for_are_refused(monkeypatch):
    """Each would choose a length of its own, and wait for the others for good."""
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "none")
    for name, value in {"RANK": 0, "LOCAL_RANK": 0, "WORLD_SIZE": 2, "GROUP_RANK": 0}.items():
        monkeypatch.setenv(name, str(value))
    with pytest.raises(UserError, match=r"--training.minutes 0.05: .* --trainer.max_epochs N, or"):
        budget.within(read_plan(TWO), Job, lambda line: None)


def test_batches_are_shared(monkeypatch):
    """An epoch of two processes has half of the batches."""
    lengths = []
    for line in (LINE, TWO):
        job = Job(read_plan(line))
        job.data.setup("fit")
        lengths.append(budget.measured(job, job.data).batches)
    assert lengths == [13, 6]


def test_lightning_starts_the_others():
    trainer = budget._trainer(read_plan(TWO))
    assert isinstance(trainer.strategy.cluster_environment, LightningEnvironment)


def test_an_estimate_counts_each_image_once():
    """1,350 training images fill 13 batches of 100, or six of twice 100."""
    totals = []
    for line in (LINE, TWO):
        whole = ["--training.minutes", "null", "--trainer.max_epochs", "1"]
        plan = read_plan([*line, "--training", "standard", *whole])
        job, trainer = Job(plan), trainer_from(plan.trainer, logger=False)
        job.data.setup("fit")
        totals.append(estimate(job.training(), job.data, trainer, lambda line: None))
    assert totals == [1300, 1200]
