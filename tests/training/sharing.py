"""Trainings of a few steps, alone or by one of two processes that share every batch.

    python tests/training/sharing.py FILE

trains every case and writes the weights to FILE. RANK, WORLD_SIZE and the like, as torchrun sets
them, say which process this is.
"""

import inspect
import os
import sys
import warnings

import pytorch_lightning as pl
import torch
from torch import nn

import robusttrain.training as package
from robusttrain.config.trainer import leave_group
from robusttrain.data import Digits
from robusttrain.defenses import GaussianNoise
from robusttrain.models.defended import DefendedClassifier
from robusttrain.training import (
    AWP,
    MART,
    TRADES,
    Adversarial,
    Consistency,
    EnsembleAdversarial,
    Free,
    GradAlign,
    RobustTraining,
    Standard,
    TrainingObjective,
)

#: Images of a whole batch.
WHOLE = 12
#: Batches of a training: two steps, so that momentum and what is carried along count.
BATCHES = 2


class Smooth(nn.Module):
    """A small network in float64, without batch norm and dropout.

    Batch norm sees a process's own images, and dropout draws in each process: with them, two
    processes train another model than one, by design.
    """

    num_classes, in_channels, image_size = 10, 1, 8

    def __init__(self, seed=0):
        super().__init__()
        rng = torch.Generator().manual_seed(seed)
        self.first = nn.Parameter(torch.randn(12, 64, generator=rng).double() / 4)
        self.second = nn.Parameter(torch.randn(10, 12, generator=rng).double())

    def forward(self, images):
        return torch.tanh((images.double().flatten(1) - 0.5) @ self.first.T) @ self.second.T


class Files:
    """Stands for the files of other models."""

    def checkpoint(self, path, trust):
        return DefendedClassifier(None, Smooth(int(path))).eval()


def public():
    """Every objective of the package."""
    return {
        each
        for each in vars(package).values()
        if inspect.isclass(each)
        and issubclass(each, TrainingObjective)
        and not inspect.isabstract(each)
    }


def cases():
    """Objective, defense, and further options of `RobustTraining`, by name."""
    needs = {
        Consistency: {"attack": Adversarial().attack},
        EnsembleAdversarial: {"models": ["1", "2"]},
        Free: {"replays": 2},
    }
    made = {
        each.__name__: (each(**needs.get(each, {})), each is Consistency, {})
        for each in sorted(public(), key=lambda each: each.__name__)
    }
    inside = {"AWP of TRADES": AWP(TRADES()), "GradAlign of AWP": GradAlign(AWP(MART()))}
    made |= {name: (objective, False, {}) for name, objective in inside.items()}
    made |= {kind: (Standard(), False, {"mixing": kind}) for kind in ("mixup", "cutmix")}
    return made


def trained(objective, noisy, options, folder="."):
    """The weights after a short training, by this process or with the others, and what the
    objective would carry on in a checkpoint.
    """
    objective = objective.opened(Files())
    model = DefendedClassifier(GaussianNoise(0.1) if noisy else None, Smooth())
    module = RobustTraining(model, 10, objective, learning_rate=0.1, schedule="constant", **options)
    fit(module, folder)
    checkpoint = {}
    module.on_save_checkpoint(checkpoint)
    weights = {name: value.detach() for name, value in model.classifier.named_parameters()}
    return weights | checkpoint.get("objective", {})


def fit(module, folder):
    """Train for a few steps."""
    world, objective = int(os.environ.get("WORLD_SIZE", 1)), module.objective
    data = Digits(batch_size=WHOLE // world, image_size=8)
    data.replays = objective.replays
    trainer = pl.Trainer(
        accelerator="cpu",
        devices=world,
        strategy="ddp" if world > 1 else "auto",
        max_epochs=1,
        limit_train_batches=BATCHES * objective.replays,
        limit_val_batches=0,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
        default_root_dir=folder,
    )
    trainer.fit(module, data)


def main(file):
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    done = {name: trained(*case) for name, case in cases().items()}
    torch.save(done, file)
    leave_group()


if __name__ == "__main__":
    main(sys.argv[1])
