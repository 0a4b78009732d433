"""What a run would cost: gradient evaluations that defenses make on models of their own."""

import math
from contextlib import nullcontext
from types import SimpleNamespace

import pytest
import pytorch_lightning as pl
import torch
from torch import nn
from torch.utils.data import DataLoader

from robusttrain.data import Batch
from robusttrain.defenses import Chain, Defense, Vote
from robusttrain.models.defended import DefendedClassifier
from robusttrain.training import RobustTraining
from robusttrain.training.cost import a_step, counted, planned, steps_of, validations


class Searching(Defense):
    """Says that it takes three gradient evaluations an image."""

    gradients = 3
    random = True

    def transform(self, images, rng):
        return images + rng.uniform(images.shape[1:], -0.1, 0.1)


@pytest.mark.parametrize(
    ("defense", "each"),
    [
        (Searching(), 3),
        (Chain([Searching()]), 3),
        (Chain([Searching(), Searching()]), 6),
        (Vote(Searching(), draws=4), 12),
        (Chain([Searching(), Vote(Chain([Searching()]), draws=2)]), 9),
    ],
    ids=["alone", "chain", "chain of two", "vote", "all"],
)
def test_what_a_chain_says_its_parts_do_not_say_again(defense, each, convnet, images, streams):
    target = DefendedClassifier(defense, convnet()).eval()
    with counted(target) as inside:
        target(images(4), streams())
    assert sum(inside) == 4 * each
    target(images(4), streams())
    assert sum(inside) == 4 * each, "nothing is counted afterwards"


def test_in_training_a_vote_takes_one_draw(convnet, images, streams):
    target = DefendedClassifier(Vote(Searching(), draws=4), convnet()).train()
    with counted(target) as inside:
        target(images(4), streams())
    assert sum(inside) == 4 * 3


@pytest.mark.parametrize(
    ("settings", "kind"),
    [({}, torch.optim.SGD), ({"optimizer": "adamw", "learning_rate": 0.1}, torch.optim.AdamW)],
    ids=["sgd", "adamw"],
)
def test_a_step_is_one_of_the_optimizer_of_the_run(settings, kind, convnet, images, monkeypatch):
    """It was SGD's without momentum, which takes less time and memory, whatever was asked for."""
    training = RobustTraining(DefendedClassifier(None, convnet()), 3, **settings)
    before = [weight.detach().clone() for weight in training.model.parameters()]
    stepped = []
    for each in (torch.optim.SGD, torch.optim.AdamW):
        monkeypatch.setattr(
            each, "step", lambda self, *given, taken=each.step: (stepped.append(self), taken(self))
        )
    plugin = SimpleNamespace(train_step_context=nullcontext)
    batch = Batch(images(4), torch.arange(4) % 3, torch.arange(4))
    a_step(training, batch, SimpleNamespace(precision_plugin=plugin), 0)
    (optimizer,) = {*stepped}
    assert len(stepped) == 3
    assert type(optimizer) is kind
    # The estimate's images are those of the run: a step of its size would spoil the weights.
    moved = zip(training.model.parameters(), before, strict=True)
    assert max((now - then).abs().max().item() for now, then in moved) < 1e-3


class Counts(pl.LightningModule):
    """Counts what Lightning does: steps, batches, and validations by epoch."""

    def __init__(self):
        super().__init__()
        self.layer, self.batches, self.validated = nn.Linear(1, 1), 0, []

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)

    def training_step(self, batch):
        self.batches += 1
        return self.layer(batch).mean()

    def validation_step(self, batch):
        """Nothing to measure."""

    def on_validation_end(self):
        self.validated.append(self.current_epoch + 1)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    "options",
    [
        {"max_epochs": 3},
        {"max_epochs": 3, "accumulate_grad_batches": 4},
        {"max_epochs": 5, "accumulate_grad_batches": 4, "max_steps": 5},
        {"max_epochs": 5, "max_steps": 13, "check_val_every_n_epoch": 2},
        {"max_epochs": None, "max_steps": 25},
        {"max_epochs": 4, "check_val_every_n_epoch": 3},
        {"max_epochs": 3, "val_check_interval": 0.3},
        {"max_epochs": 3, "val_check_interval": 5},
        {"max_epochs": 3, "val_check_interval": 7, "check_val_every_n_epoch": None},
        {"max_epochs": 3, "limit_val_batches": 0},
        {"max_epochs": 2, "limit_train_batches": 0.5},
    ],
    ids=str,
)
def test_steps_and_validations_are_those_of_lightning(options):
    """Ten batches an epoch."""
    loader = DataLoader(torch.ones(10, 1))
    off = ("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary")
    trainer = pl.Trainer(
        accelerator="cpu", num_sanity_val_steps=0, **dict.fromkeys(off, False), **options
    )
    batches, epochs, total = planned(len(loader), trainer)
    steps = steps_of(batches, total, trainer.accumulate_grad_batches)
    expected = validations(trainer, batches, total)
    counts = Counts()
    trainer.fit(counts, loader, DataLoader(torch.ones(2, 1)))
    assert (total, steps) == (counts.batches, trainer.global_step)
    assert expected == counts.validated
    assert epochs == math.ceil(counts.batches / batches)


def test_a_run_for_which_nobody_says_a_length_has_lightnings():
    trainer = pl.Trainer(accelerator="cpu", logger=False, enable_checkpointing=False)
    assert planned(10, trainer) == (10, 1000, 10_000)
