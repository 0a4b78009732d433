"""Short runs of Lightning's trainer on digits, and what they left in TensorBoard's files."""

import pytorch_lightning as pl
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from robusttrain.data import Digits
from robusttrain.defenses import AdversarialTransform
from robusttrain.models import CifarResNet, VGGSmall
from robusttrain.models.defended import DefendedClassifier
from robusttrain.training import RobustTraining
from robusttrain.training.board import Board

F_A = {"num_classes": 10, "in_channels": 1, "widths": [4, 8], "blocks": 1}


def defended(defense=True):
    torch.manual_seed(0)
    f_b = VGGSmall(num_classes=10, in_channels=1, image_size=16)
    return DefendedClassifier(
        AdversarialTransform(f_b, steps=1, radius=0.1) if defense else None, CifarResNet(**F_A)
    )


def fit(folder, callbacks, epochs=1, model=None, logger=True, **options):
    module = RobustTraining(model or defended(), 10)
    trainer = pl.Trainer(
        max_epochs=epochs,
        limit_train_batches=2,
        limit_val_batches=1,
        accelerator="cpu",
        logger=Board(folder, "run", 0) if logger else False,
        callbacks=callbacks,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
        default_root_dir=folder,
        **{"num_sanity_val_steps": 0, **options},
    )
    trainer.fit(module, Digits(batch_size=16))
    return module, trainer


def events(folder, line=""):
    """What a folder of a run holds: its own, or that of one line of its charts."""
    path = str(folder / "run" / "version_0" / line)
    everything = {"images": 0, "scalars": 0, "tensors": 0}
    return EventAccumulator(path, size_guidance=everything).Reload()
