"""Training of h, the differentiable stand-in for g of the reparameterization attack [P1 3.3,
4.1].
"""

from __future__ import annotations

from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor
from torch.optim.lr_scheduler import OneCycleLR

from robusttrain.core.checked import NonNegative, Positive, checked
from robusttrain.core.errors import UserError
from robusttrain.core.in_float32 import InFloat32
from robusttrain.core.memory_format import exact_convolutions, use_fastest_format
from robusttrain.core.rng import Rng
from robusttrain.data import Batch
from robusttrain.defenses import Defense
from robusttrain.models import FullyConvolutional


@checked
class ReparameterizationTraining(InFloat32, pl.LightningModule):
    """Minimises E |h(x) - g(x)|^2 over images and draws of g, by Adam with a one-cycle schedule.

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
        learning_rate: Positive = 3e-3,
        weight_decay: NonNegative = 1e-4,
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.defense, self.network = defense.eval().requires_grad_(False), network
        self.learning_rate, self.weight_decay, self.seed = learning_rate, weight_decay, seed

    def setup(self, stage: str) -> None:
        use_fastest_format(self.network)

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.AdamW(
            self.network.parameters(), lr=self.learning_rate, weight_decay=self.weight_decay
        )
        steps = int(self.trainer.estimated_stepping_batches)
        return [optimizer], [
            {"scheduler": OneCycleLR(optimizer, self.learning_rate, steps), "interval": "step"}
        ]

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        rng = Rng.for_images(self.seed, batch.indices).fold("train").fold(self.current_epoch)
        with torch.no_grad():
            aim = self.defense(batch.images, rng)
        if aim.shape != batch.images.shape:
            raise UserError(
                "reparameterization: this defense changes the size of images; h cannot follow"
            )
        with exact_convolutions(batch.images.device):
            error = (self.network(batch.images) - aim).square().mean()
        if not torch.isfinite(error):
            raise UserError(
                "reparameterization: the error became NaN or infinite: lower --h.learning_rate"
            )
        self.log("h/training_error", error, prog_bar=True)
        return error


def errors(
    defense: Defense, network: FullyConvolutional, images: Tensor, rng: Rng
) -> dict[str, Tensor]:
    """How close h is to g, as mean squares per pixel value, (B,) each.

    - ``error``: |h(x) - g(x)|^2, which training minimises.
    - ``floor``: the variance of g's draws, the least error of any function of x alone; |g_1 -
      g_2|^2 / 2 of two draws estimates this variance without bias.
    - ``identity``: |x - g(x)|^2, the error of h(x) = x, the stand-in of BPDA-I.
    """
    with torch.no_grad():
        first, second = (defense(images, rng.fold(draw)) for draw in range(2))
        differences = {
            "error": network(images) - first,
            "floor": (first - second) / 2**0.5,
            "identity": images - first,
        }
    return {
        name: difference.square().flatten(1).mean(dim=1) for name, difference in differences.items()
    }
