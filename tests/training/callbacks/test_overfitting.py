"""The guard against overfitting: histories with known verdicts, and a run that overfits for
certain.
"""

import csv

import pytest
import pytorch_lightning as pl
import torch
from pytorch_lightning.loggers import CSVLogger, TensorBoardLogger
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import nn

from robusttrain.attacks import Linf, ProjectedGradient, Target
from robusttrain.config.attacks import scenarios
from robusttrain.core.errors import OptionError
from robusttrain.data import Digits
from robusttrain.evaluation import Scenario
from robusttrain.models.defended import DefendedClassifier
from robusttrain.training import Adversarial, RobustTraining
from robusttrain.training.callbacks import Overfitting, RobustAccuracy

pytestmark = pytest.mark.filterwarnings("ignore")


def verdicts(history, **options):
    """(catastrophic, robust) by epoch, and the lines that were said, for epochs of (check, inner,
    train).
    """
    guard, flags, lines = Overfitting("robust/pgd-quick", **options), [], []
    for epoch, (check, inner, train) in enumerate(history):
        now = {"check": check, "train": train} | ({} if inner is None else {"inner": inner})
        logged = guard.judge(now, epoch)
        flags.append((logged["overfitting/catastrophic"], logged["overfitting/robust"]))
        lines += guard.news(logged, now, epoch)
    return flags, lines


def test_the_inner_attack_is_learnt_by_heart():
    flags, lines = verdicts(
        [(0.40, 0.50, 0.50), (0.45, 0.55, 0.55), (0.24, 0.80, 0.90), (0.0, 0.99, 0.99)]
    )
    assert flags == [(0, 0), (0, 0), (1, 0), (1, 0)]
    (line,) = lines
    assert line.startswith(
        "catastrophic overfitting: robust accuracy fell since epoch 2: 0.450 then, 0.240 in epoch 3"
    )
    assert "0.800" in line
    assert "--monitor robust/worst_case" in line


def test_a_model_that_only_gets_worse_has_not_overfitted_catastrophically():
    """A learning rate that is too high: the inner attack succeeds more often as well."""
    flags, lines = verdicts([(0.45, 0.55, 0.55), (0.20, 0.30, 0.30)])
    assert flags == [(0, 0), (0, 0)]
    assert lines == []


def test_robust_overfitting_is_said_once_after_a_best_epoch():
    history = [
        (0.50, 0.55, 0.55),
        (0.44, 0.52, 0.60),
        (0.43, 0.52, 0.70),
        (0.49, 0.52, 0.72),
        (0.42, 0.5, 0.8),
        (0.60, 0.6, 0.82),
        (0.50, 0.6, 0.9),
    ]
    flags, lines = verdicts(history)
    assert [robust for _, robust in flags] == [0, 1, 1, 0, 1, 0, 1]
    assert len(lines) == 2
    assert "since epoch 1: 0.500 then, 0.440 in epoch 2" in lines[0]
    assert "rose to 0.600" in lines[0]
    assert "since epoch 6: 0.600 then, 0.500 in epoch 7" in lines[1]


def test_whoever_knows_nothing_has_nothing_to_lose():
    """Of three classes a third is right by chance."""
    history = [(0.33, 0.30, 0.30), (0.0, 0.40, 0.40)]
    for chance, expected in ((1 / 3, 0), (0.1, 1)):
        guard = Overfitting("robust/pgd-quick")
        guard.chance = chance
        for check, inner, train in history:
            logged = guard.judge({"check": check, "inner": inner, "train": train}, 0)
        assert logged["overfitting/catastrophic"] == guard.collapsed == expected


def test_thresholds_have_an_effect():
    history = [(0.50, 0.55, 0.55), (0.45, 0.60, 0.60)]
    assert verdicts(history)[0][1] == (0, 1)
    assert verdicts(history, fall=0.06)[0][1] == (0, 0)
    assert verdicts(history, drop=0.05)[0][1] == (1, 0)


def test_without_an_inner_attack_nothing_is_catastrophic():
    nan = float("nan")
    assert verdicts([(0.5, None, nan), (0.0, None, nan)])[0] == [(0, 0), (0, 0)]


def test_strength_is_the_share_of_errors_that_the_inner_attack_finds():
    guard = Overfitting("robust/pgd-quick")
    assert guard.judge({"check": 0.2, "inner": 0.6, "train": 0.5}, 0)[
        "inner/strength"
    ] == pytest.approx(0.5)


@pytest.mark.parametrize("inner", [1.0, 127 / 128])
def test_where_the_check_finds_no_error_the_inner_attack_is_as_strong(inner):
    """Not 0, which says that training sees no adversarial images, nor thousands."""
    guard = Overfitting("robust/pgd-quick")
    logged = guard.judge({"check": 1.0, "inner": inner, "train": 0.5}, 0)
    assert logged["inner/strength"] == 1


class Broken(nn.Module):
    """Class 0 wins by 0.1 on images of grey 0.4, and by less the darker they are: steeply from the
    second epoch on.
    """

    num_classes, in_channels, image_size = 10, 1, 16

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(()))
        self.slope = 0.5

    def forward(self, images):
        ahead = self.slope * (images.mean(dim=(1, 2, 3)) - 0.4) + 0.1
        return torch.stack([ahead + self.weight, *[torch.zeros_like(ahead)] * 9], dim=1)


class Turn(pl.Callback):
    def on_validation_epoch_start(self, trainer, module):
        module.model.classifier.slope = 10.0 if trainer.current_epoch else 0.5


class Greys(Digits):
    """Images of grey 0.4, all of class 0."""

    def _read(self, split):
        images = torch.full((64, 1, 16, 16), 102, dtype=torch.uint8)
        return images, torch.zeros(64, dtype=torch.int64), [str(number) for number in range(10)]


@pytest.fixture
def turning(tmp_path):
    """Trains a model that the check breaks from the second epoch on, beside an inner attack that
    stands still: the guard, and what it said.
    """

    def run(logger):
        nothing = ProjectedGradient(steps=0, step_size=0.01, random_start=False, threat=Linf(0.02))
        check = scenarios(["pgd-quick"], epsilon=0.02)
        lines = []
        guard = Overfitting(
            "robust/pgd-quick", Scenario(nothing, Target()), images=6, draws=1, say=lines.append
        )
        module = RobustTraining(
            DefendedClassifier(None, Broken()), 10, Adversarial(nothing), learning_rate=1e-9
        )
        trainer = pl.Trainer(
            max_epochs=3,
            accelerator="cpu",
            logger=logger,
            callbacks=[Turn(), RobustAccuracy(check, images=6, draws=1), guard],
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            use_distributed_sampler=False,
            num_sanity_val_steps=1,
            default_root_dir=tmp_path,
        )
        trainer.fit(module, Greys(batch_size=16, crop=0))
        return guard, lines

    return run


def test_other_loggers_get_its_figures_without_its_words(tmp_path, turning):
    _, lines = turning(CSVLogger(tmp_path, "run", 0))
    assert len(lines) == 1
    with (tmp_path / "run" / "version_0" / "metrics.csv").open() as file:
        rows = [row for row in csv.DictReader(file) if row["overfitting/fall"]]
    assert [float(row["overfitting/catastrophic"]) for row in rows] == [0, 1, 1]


def test_a_run_logs_says_and_remembers(tmp_path, turning):
    guard, lines = turning(
        TensorBoardLogger(tmp_path, name="run", version=0, default_hp_metric=False)
    )
    (line,) = lines
    assert line.startswith(
        "catastrophic overfitting: robust accuracy fell since epoch 1: 1.000 then, 0.000 in epoch 2"
    )
    found = EventAccumulator(
        str(tmp_path / "run" / "version_0"), size_guidance={"tensors": 0}
    ).Reload()

    def curve(name):
        return [event.value for event in found.Scalars(name)]

    assert curve("overfitting/catastrophic") == [0, 1, 1]
    assert curve("overfitting/fall") == [0, 1, 1]
    assert curve("inner/accuracy") == [1, 1, 1]
    assert curve("inner/strength")[1:] == [0, 0]
    assert [event.step for event in found.Tensors("overfitting/text_summary")] == [
        event.step for event in found.Scalars("inner/accuracy")[1:2]
    ]
    other = Overfitting("robust/pgd-quick")
    other.load_state_dict(guard.state_dict())
    assert other.best["check"] == 1
    assert other.flagged == ["catastrophic"]


@pytest.mark.parametrize("option", ["drop", "fall"])
def test_errors_name_the_option(option):
    with pytest.raises(OptionError, match=f"^{option} = 0"):
        Overfitting("robust/pgd-quick", **{option: 0.0})
