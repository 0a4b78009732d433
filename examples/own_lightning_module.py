"""A LightningModule of one's own, trained by one's own code, and attacked after every epoch.

    python examples/own_lightning_module.py

robusttrain trains nothing here. Its callback asks for two things: the network is the module's
`model` (images in [0, 1] to logits), and the trainer's data module is one of `robusttrain.data`,
such as `ImageFolder` for pictures of your own. (If another callback averages weights, the trainer
gets it behind this one.) It logs `robust/NAME` for each attack and
`robust/worst_case`, which checkpoints and early stopping can follow. Afterwards the trained network
goes to `robusttrain.evaluate` as any other does.
"""

from __future__ import annotations

import logging
import tempfile
from pathlib import Path

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import ModelCheckpoint
from torch import Tensor, nn

import robusttrain
from robusttrain.attacks import Linf
from robusttrain.data import Batch, Digits
from robusttrain.training.callbacks import RobustAccuracy

THREAT = Linf(8 / 255)


class MyModule(pl.LightningModule):
    """Noise on the images, cross entropy, Adam: whatever you train with stays yours."""

    def __init__(self) -> None:
        super().__init__()
        self.model = nn.Sequential(
            *(nn.Conv2d(1, 16, 3, stride=2, padding=1), nn.BatchNorm2d(16), nn.ReLU()),
            *(nn.Conv2d(16, 32, 3, stride=2, padding=1), nn.BatchNorm2d(32), nn.ReLU()),
            *(nn.Flatten(), nn.Linear(32 * 4 * 4, 10)),
        )

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        noisy = batch.images + 0.1 * torch.randn_like(batch.images)
        return nn.functional.cross_entropy(self.model(noisy), batch.labels)

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        correct = self.model(batch.images).argmax(dim=1) == batch.labels
        self.log("val/accuracy", correct.float().mean())

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), lr=3e-3)


class Figures(pl.Callback):
    """One line an epoch, of what was logged."""

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        seen = {name: value.item() for name, value in trainer.callback_metrics.items()}
        line = ", ".join(f"{name} {100 * seen[name]:.1f} %" for name in sorted(seen))
        print(f"epoch {trainer.current_epoch + 1}: {line}")


def main(folder: Path) -> None:
    """Train for three epochs, keep the most robust one, and evaluate it."""
    pl.seed_everything(0, verbose=False)
    data, module = Digits(), MyModule()
    watch = RobustAccuracy({"pgd": robusttrain.attack("pgd", epsilon=THREAT.epsilon)}, images=64)
    best = ModelCheckpoint(folder, monitor="robust/worst_case", mode="max")
    pl.Trainer(
        max_epochs=3,
        accelerator="cpu",
        callbacks=[watch, best, Figures()],
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,  # the data module shares its images out itself
    ).fit(module, data)

    best_module = MyModule.load_from_checkpoint(best.best_model_path)
    attacks = ["pgd", "apgd-ce"]
    results = robusttrain.evaluate(
        best_module.model,
        data,
        count=50,
        attacks=attacks,
        threat=THREAT,
        audit=False,
        progress=False,
    )
    print("test images, no attack:", results.clean)
    print("test images, worst case:", results.worst_case)


if __name__ == "__main__":
    logging.getLogger("pytorch_lightning").setLevel(logging.ERROR)
    with tempfile.TemporaryDirectory() as folder:
        main(Path(folder))
