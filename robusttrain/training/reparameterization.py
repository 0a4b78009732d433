"""Training of h, the differentiable stand-in for g of the reparameterization attack [P1 3.3, 4.1]."""

from __future__ import annotations

from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor
from torch.optim.lr_scheduler import OneCycleLR
from torchmetrics import MeanMetric

from robusttrain.data import Batch
from robusttrain.defenses import Defense
from robusttrain.errors import UserError, above
from robusttrain.models import FullyConvolutional
from robusttrain.rng import Rng

METRICS = ("error", "floor", "identity")


class ReparameterizationTraining(pl.LightningModule):
    """Minimises E |h(x) - g(x)|^2 over images and draws of g, by Adam with a one-cycle schedule.

    Three errors are reported, all as mean squares per pixel value, on the training and on the test images:

    - ``error``: |h(x) - g(x)|^2, what is minimised.
    - ``floor``: the variance of g's draws, below which no function of x alone can get. (From pairs of draws:
      |g_1 - g_2|^2 / 2 estimates it without bias.)
    - ``identity``: |x - g(x)|^2, what h(x) = x would get: the error of BPDA-I's assumption.

    Args:
        defense: g.
        network: h.
        learning_rate: Adam's, at its highest.
        weight_decay: Adam's, decoupled.
        seed: of all randomness in training.
    """

    def __init__(
        self,
        defense: Defense,
        network: FullyConvolutional,
        learning_rate: float = 3e-3,
        weight_decay: float = 1e-4,
        seed: int = 0,
    ) -> None:
        super().__init__()
        above("learning_rate", learning_rate, 0)
        self.defense, self.network = defense.eval().requires_grad_(False), network
        self.learning_rate, self.weight_decay, self.seed = learning_rate, weight_decay, seed
        self.means = torch.nn.ModuleDict(
            {f"{split}_{name}": MeanMetric() for split in ("train", "test") for name in METRICS}
        )

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.AdamW(self.network.parameters(), lr=self.learning_rate, weight_decay=self.weight_decay)
        steps = int(self.trainer.estimated_stepping_batches)
        return [optimizer], [{"scheduler": OneCycleLR(optimizer, self.learning_rate, steps), "interval": "step"}]

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        rng = Rng.for_images(self.seed, batch.indices).fold("train").fold(self.current_epoch)
        with torch.no_grad():
            aim = self.defense(batch.images, rng)
        if aim.shape != batch.images.shape:
            raise UserError("reparameterization: this defense changes the size of images; h cannot follow")
        error = (self.network(batch.images) - aim).square().mean()
        if not torch.isfinite(error):
            raise UserError("reparameterization: the error became NaN or infinite: lower --training.learning_rate")
        self.log("h/training_error", error, prog_bar=True)
        return error

    def test_step(self, batch: Batch, batch_idx: int, dataloader_idx: int = 0) -> None:
        split = ("train", "test")[dataloader_idx]
        rng = Rng.for_images(self.seed, batch.indices).fold(split)
        with torch.no_grad():
            first, second = (self.defense(batch.images, rng.fold(draw)) for draw in range(2))
        figures = {
            "error": self.network(batch.images) - first,
            "floor": (first - second) / 2**0.5,
            "identity": batch.images - first,
        }
        for name, difference in figures.items():
            self.means[f"{split}_{name}"](difference.square().flatten(1).mean(dim=1))

    def found(self) -> dict[str, float]:
        """The errors by name, "train_error" and so on, after ``test``."""
        return {name: round(float(mean.compute()), 6) for name, mean in self.means.items()}  # type: ignore[operator]
