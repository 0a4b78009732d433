"""Progress without a terminal: a few lines, no carriage returns, figures of their own epoch."""

import re
from types import SimpleNamespace

import pytest
import pytorch_lightning as pl
import torch

from robusttrain.config.trainer import trainer_from
from robusttrain.core.console import say
from robusttrain.data import Digits
from robusttrain.models import CifarResNet
from robusttrain.models.defended import DefendedClassifier
from robusttrain.training import RobustTraining
from robusttrain.training.callbacks import ProgressLines, progress

pytestmark = pytest.mark.filterwarnings("ignore")


class EverySecond(pl.Callback):
    """A figure that only every second epoch has, as robust accuracy may; and an early end."""

    def __init__(self, stop=None):
        self.stop = stop

    def on_validation_epoch_end(self, trainer, module):
        if trainer.current_epoch % 2:
            module.log("robust/some", float(trainer.current_epoch), prog_bar=True)
        trainer.should_stop = trainer.current_epoch + 1 == self.stop


@pytest.fixture
def lines(capfd):
    """Trains, and gives the lines of progress; stderr is a file here, no terminal."""

    def run(*callbacks, batches=1, **options):
        torch.manual_seed(0)
        model = DefendedClassifier(None, CifarResNet(10, 1, widths=[2], blocks=1))
        settings = {"accelerator": "cpu", "enable_model_summary": False, "num_sanity_val_steps": 0}
        settings |= {"limit_train_batches": batches, "limit_val_batches": 1, **options}
        own = {"logger": False, "enable_checkpointing": False, "callbacks": [*callbacks]}
        trainer_from(settings, say, **own).fit(RobustTraining(model, 10), Digits(8, image_size=8))
        out, err = capfd.readouterr()
        assert "\r" not in out + err
        # Lightning talks about its own products unless a command tells it not to.
        return [line for line in (out + err).splitlines() if "epoch" in line.lower()]

    return run


def numbers(lines):
    return [int(re.match(r"epoch (\d+)", line)[1]) for line in lines]


def test_a_line_has_the_figures_of_its_own_epoch(lines, monkeypatch):
    monkeypatch.setattr(progress, "PAUSE", 0.0)
    found = lines(EverySecond(), max_epochs=4)
    figures = ["train/accuracy", "train/loss", "val/accuracy", "val/loss"]
    for number, line in enumerate(found, start=1):
        assert re.fullmatch(rf"epoch {number}/4: .*, \d+ s", line), line
        assert len(line) < 140
        own = sorted(re.findall(r"(\S+) (?:\d+\.\d{3}),", line))
        assert own == (figures if number % 2 else sorted([*figures, "robust/some"]))
    assert "robust/some 3.000" in found[3]


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"max_epochs": 23}, [1, 23]),
        ({"max_epochs": 99, "max_steps": 42, "batches": 2}, [1, 21]),
    ],
)
def test_quick_epochs_have_a_line_for_the_first_and_one_for_the_last(lines, options, told):
    assert numbers(lines(**options)) == told


def test_a_run_that_ends_early_tells_its_last_epoch(lines):
    assert numbers(lines(EverySecond(stop=7), max_epochs=50)) == [1, 7]


def test_no_line_is_wanted(lines):
    assert lines(max_epochs=2, enable_progress_bar=False) == []


@pytest.mark.parametrize(
    ("seconds", "told"),
    [
        (5, ["epoch 1/200: 10 s", "epoch 3/200: 10 s", "epoch 5/200: 10 s", "epoch 7/200: 10 s"]),
        (20, [f"epoch {number}/200: 40 s" for number in range(1, 8)]),
        (70, ["epoch 1/200: batch 1 of 2", "epoch 1/200: 140 s", "epoch 2/200: batch 1 of 2"]),
    ],
)
def test_slow_epochs_are_told_as_they_end_and_very_slow_ones_on_the_way(seconds, told):
    """Seven epochs of two batches that take as long each."""
    said, now = [], [0]
    callback = ProgressLines(said.append, clock=lambda: now[0])
    trainer = SimpleNamespace(max_epochs=200, max_steps=-1, num_training_batches=2)
    trainer.callback_metrics = trainer.progress_bar_metrics = {}
    callback.on_train_start(trainer, None)
    for trainer.current_epoch in range(7):
        callback.on_train_epoch_start(trainer, None)
        for batch in range(2):
            now[0] += seconds
            callback.on_train_batch_end(trainer, None, None, None, batch)
        callback.on_train_epoch_end(trainer, None)
    assert said[: len(told)] == told
    assert len(said) == (14 if seconds == 70 else len(told))


def test_other_processes_are_silent():
    said = []
    callback = ProgressLines(said.append)
    callback.setup(SimpleNamespace(is_global_zero=False), None, "fit")
    callback.unsaid = "epoch 1"
    callback.on_train_end(None, None)
    assert said == []
