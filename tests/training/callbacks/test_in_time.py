"""A training of a stated time has fewer epochs where they become slower, and its learning rate
still comes to the schedule's end.
"""

import pytest
import pytorch_lightning as pl
import torch

from robusttrain.data import Digits
from robusttrain.models import CifarResNet
from robusttrain.models.defended import DefendedClassifier
from robusttrain.training import RobustTraining
from robusttrain.training.callbacks import InTime
from robusttrain.training.schedules import Course

pytestmark = pytest.mark.filterwarnings("ignore")

PLANNED, BATCHES = 8, 3


class Rates(pl.Callback):
    """The learning rate of each epoch's last step, and the rate after it."""

    def __init__(self, seconds):
        self.now, self.seconds, self.used, self.after = 0.0, seconds, [], None

    def on_train_batch_start(self, trainer, module, batch, batch_idx):
        self.used.append(round(trainer.optimizers[0].param_groups[0]["lr"], 9))

    def on_train_epoch_end(self, trainer, module):
        self.now += self.seconds[trainer.current_epoch]
        self.after = trainer.optimizers[0].param_groups[0]["lr"]


def run(tmp_path, seconds, minutes=10.0, resume=None, stop=None, least=1, max_steps=-1, **settings):
    """Trains, an epoch taking so many seconds; what it used, and lines that were said."""
    torch.manual_seed(0)
    lines, rates = [], Rates(seconds)
    rates.now = 1e6 * (resume is not None)  # another process's clock
    in_time = InTime(minutes, least=least, say=lines.append, clock=lambda: rates.now)
    keep = pl.callbacks.ModelCheckpoint(tmp_path, "{epoch}", save_top_k=-1)

    class Stop(pl.Callback):
        def on_train_epoch_end(self, trainer, module):
            trainer.should_stop = trainer.current_epoch + 1 == stop

    model = DefendedClassifier(None, CifarResNet(10, 1, widths=[2], blocks=1))
    training = RobustTraining(model, 10, **{"schedule": "one_cycle", **settings})
    trainer = pl.Trainer(
        accelerator="cpu",
        max_epochs=PLANNED,
        max_steps=max_steps,
        limit_train_batches=BATCHES,
        limit_val_batches=0,
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[rates, in_time, Stop(), keep],
    )
    path = None if resume is None else tmp_path / f"epoch={resume - 1}.ckpt"
    data = Digits(8, image_size=8)
    trainer.fit(training, data, ckpt_path=path, weights_only=path is not None or None)
    return trainer.current_epoch, rates, lines


def test_a_run_that_keeps_its_pace_is_as_planned(tmp_path):
    epochs, rates, lines = run(tmp_path, [70.0] * PLANNED)
    assert (epochs, lines) == (PLANNED, [])
    plain = run(tmp_path, [1.0] * PLANNED)
    assert rates.used == plain[1].used
    assert rates.after == plain[1].after


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"schedule": "cosine"},
        {"schedule": "cosine", "warmup_epochs": 1.0},
        {"schedule": "poly"},
        {"schedule": "tanh"},
        {"schedule": "piecewise", "milestones": [4, 7]},
        {"schedule": "step", "schedule_options": {"decay_epochs": 4}},
        {"schedule": "constant"},
    ],
    ids=str,
)
def test_slower_epochs_are_fewer_and_the_rate_still_comes_to_its_end(tmp_path, settings):
    planned = run(tmp_path, [70.0] * PLANNED, **settings)[1]
    epochs, rates, lines = run(tmp_path, [70.0, 70.0, *[115.0] * 6], **settings)
    # 140 + 115 s are over after the third; of the 345 left three fit at 85 s and more.
    assert epochs == 6
    assert len(rates.used) == 6 * BATCHES
    assert rates.used[: 3 * BATCHES] == planned.used[: 3 * BATCHES]  # as far as it was as planned
    assert rates.after == pytest.approx(planned.after, rel=1e-6)
    assert "--training.minutes 10: 7 epochs instead of 8, since one takes about" in lines[0]


def test_epochs_that_become_faster_again_come_back(tmp_path):
    slow, fast = 140.0, 40.0
    epochs, rates, lines = run(tmp_path, [slow, slow, fast, fast, fast, fast, fast, fast])
    assert [line.split(": ")[1].split(",")[0] for line in lines] == [
        "4 epochs instead of 8",
        "5 epochs instead of 4",
        "7 epochs instead of 5",
        "8 epochs instead of 7",
    ]
    assert epochs == PLANNED
    assert rates.after == pytest.approx(run(tmp_path, [1.0] * PLANNED)[1].after, rel=1e-6)


def test_when_the_time_is_over_one_epoch_more_ends_the_schedule(tmp_path):
    epochs, rates, lines = run(tmp_path, [700.0] * PLANNED)
    assert epochs == 2
    assert rates.after == pytest.approx(run(tmp_path, [1.0] * PLANNED)[1].after, rel=1e-6)
    assert len(lines) == 1
    # An average of weights that begins later has its epochs in any case.
    assert run(tmp_path, [700.0] * PLANNED, least=5)[0] == 5


def test_the_first_minute_says_nothing(tmp_path):
    epochs, _, lines = run(tmp_path, [7.0] * PLANNED, minutes=0.5)
    assert (epochs, lines) == (PLANNED, [])


def test_a_run_that_was_stopped_goes_on_as_one_that_was_not(tmp_path):
    seconds = [70.0, 70.0, *[115.0] * 6]
    whole = run(tmp_path / "whole", seconds)
    first = run(tmp_path / "parts", seconds, stop=5)
    second = run(tmp_path / "parts", seconds, resume=5)
    assert (first[0], second[0]) == (5, whole[0])
    assert first[1].used + second[1].used == whole[1].used
    assert second[1].after == whole[1].after
    # After its end there is nothing left to train.
    assert run(tmp_path / "parts", seconds, resume=6)[1].used == []


@pytest.mark.parametrize(("rate", "steps"), [(1.0, 7), (5 / 3, 6), (2.5, 4), (0.5, 8), (7.0, 1)])
def test_a_course_takes_as_many_steps_as_it_is_told(rate, steps):
    course = Course(rate)
    taken = [course.steps() for _ in range(steps)]
    assert sum(taken) == round(rate * steps)
    assert max(taken) - min(taken) <= 1


def test_steps_that_end_the_schedule_sooner_count(tmp_path):
    """Of 8 planned epochs of 3 steps, 18 steps are the schedule; 4 epochs fit."""
    epochs, rates, lines = run(tmp_path, [70.0] * PLANNED, minutes=4.7, max_steps=18)
    assert epochs == 4
    assert len(lines) == 1
    plain = run(tmp_path, [1.0] * PLANNED, max_steps=18)[1]
    assert rates.after == pytest.approx(plain.after)
    assert rates.used[:3] == plain.used[:3]
