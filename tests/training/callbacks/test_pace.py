"""What an epoch took: every figure against one that is known."""

import time
from types import SimpleNamespace

import pytest
import pytorch_lightning as pl
import torch

from robusttrain.attacks import Linf, ProjectedGradient
from robusttrain.data import Digits
from robusttrain.data.batches import Split
from robusttrain.models import CifarResNet
from robusttrain.models.defended import DefendedClassifier
from robusttrain.training import Adversarial, RobustTraining, Standard
from robusttrain.training.callbacks import Pace
from robusttrain.training.callbacks.pace import peak_memory
from robusttrain.training.crafting import Meter

pytestmark = pytest.mark.filterwarnings("ignore")


class Slow(ProjectedGradient):
    """Takes a tenth of a second, and finds nothing."""

    def run(self, source, images, labels, rng):
        time.sleep(0.1)
        return images


class Wait(pl.Callback):
    """A tenth of a second that is no attack's, in every batch; and what was logged."""

    def __init__(self):
        self.found = []

    def on_train_batch_start(self, *rest):
        time.sleep(0.1)

    def on_validation_epoch_end(self, *rest):
        time.sleep(0.5)  # not part of the pace

    def on_train_end(self, trainer, module):
        self.found = {name: float(value) for name, value in trainer.callback_metrics.items()}


class Late(Digits):
    """Takes a twentieth of a second to load a batch, and as long to augment one in training."""

    def train_dataloader(self):
        batches = super().train_dataloader()
        batches.dataset.__class__ = SlowSplit
        return batches


class SlowSplit(Split):
    def __getitem__(self, positions):
        time.sleep(0.05)
        return super().__getitem__(positions)


def fit(objective, data=None, pace=None, **options):
    torch.manual_seed(0)
    model = DefendedClassifier(None, CifarResNet(10, 1, widths=[4], blocks=1))
    module, wait = RobustTraining(model, 10, objective), Wait()
    trainer = pl.Trainer(
        **{"max_epochs": 1, **options},
        limit_train_batches=4,
        limit_val_batches=1,
        accelerator="cpu",
        logger=False,
        callbacks=[wait, pace or Pace()],
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
        num_sanity_val_steps=0,
    )
    trainer.fit(module, data or Digits(batch_size=8))
    return module, wait.found


def test_an_epoch_of_known_length():
    module, found = fit(Adversarial(Slow(steps=1, step_size=0.1, threat=Linf(0.1))))
    # 32 images in at least 0.8 s, half of them in the attack; what the network itself takes comes
    # on top.
    seconds = 32 / found["pace/images_per_second"]
    assert seconds >= 0.8
    assert 0.4 <= found["pace/inner_share"] * seconds <= seconds - 0.4
    weights = torch.cat([weight.detach().flatten() for weight in module.model.parameters()])
    assert found["weights/norm"] == pytest.approx(float(weights.norm()), rel=1e-5)
    assert found["inner/train_accuracy"] == pytest.approx(found["train/accuracy"], abs=1e-6)
    assert 0.05 < found["pace/memory_gib"] < 64


def test_time_that_training_waits_for_batches():
    """Said once, with what helps."""
    said = []
    _, found = fit(Standard(), Late(batch_size=8), Pace(said.append), max_epochs=2)
    seconds = 32 / found["pace/images_per_second"]
    assert 0.2 <= found["pace/loader_share"] * seconds <= seconds - 0.4
    assert 0 < found["pace/augmentation_share"] < 0.5
    (line,) = said
    assert line.startswith("training waited for batches in ")
    assert line.endswith("% of the time: --data.workers 2 loads beside the training")


def test_nobody_hears_of_a_loader_that_keeps_up():
    said = []
    _, found = fit(Standard(), pace=Pace(said.append))
    assert found["pace/loader_share"] < 0.05
    assert not said


def test_a_validation_within_the_epoch_is_no_part_of_it(monkeypatch):
    clock = SimpleNamespace(now=0.0)
    ticks = SimpleNamespace(perf_counter=lambda: clock.now)
    monkeypatch.setattr("robusttrain.training.callbacks.pace.time", ticks)
    trainer = SimpleNamespace(train_dataloader=None, datamodule=None, num_training_batches=2)
    module = SimpleNamespace(meter=Meter(), device=torch.device("cpu"))
    batch, pace = SimpleNamespace(images=torch.zeros(8)), Pace()
    for _ in range(2):
        pace.on_train_epoch_start(trainer, module)
        for number in range(2):
            clock.now += 1
            pace.on_train_batch_end(trainer, module, None, batch, number)
            pace.on_validation_start(trainer, module)
            clock.now += 5
            pace.on_validation_end(trainer, module)
        assert pace.seconds == 2


def test_without_an_attack_none_is_reported():
    _, found = fit(Standard())
    assert found["pace/inner_share"] == 0
    assert "inner/train_accuracy" not in found


def test_memory_of_the_process_never_falls():
    before = peak_memory(torch.device("cpu"))
    held = torch.ones(2**25)  # 128 MiB
    after = peak_memory(torch.device("cpu"))
    assert after >= before > 2**25
    del held
