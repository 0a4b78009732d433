"""What an epoch took: every figure against one that is known."""

import time

import pytest
import pytorch_lightning as pl
import torch

from robusttrain.attacks import Linf, ProjectedGradient
from robusttrain.data import Digits
from robusttrain.models import CifarResNet
from robusttrain.models.defended import DefendedClassifier
from robusttrain.training import Adversarial, RobustTraining, Standard
from robusttrain.training.callbacks import Pace
from robusttrain.training.callbacks.pace import peak_memory

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


def fit(objective):
    torch.manual_seed(0)
    model = DefendedClassifier(None, CifarResNet(10, 1, widths=[4], blocks=1))
    module, wait = RobustTraining(model, 10, objective), Wait()
    trainer = pl.Trainer(
        max_epochs=1,
        limit_train_batches=4,
        limit_val_batches=1,
        accelerator="cpu",
        logger=False,
        callbacks=[wait, Pace()],
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
        num_sanity_val_steps=0,
    )
    trainer.fit(module, Digits(batch_size=8))
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
