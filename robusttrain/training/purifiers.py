"""Training of the networks that purify images: of `Denoiser`, and of `Diffusion`."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import OneCycleLR

from robusttrain.core.checked import NonNegative, Positive, checked
from robusttrain.core.errors import UserError
from robusttrain.core.in_float32 import InFloat32
from robusttrain.core.memory_format import use_fastest_format
from robusttrain.core.rng import Rng
from robusttrain.data import Batch
from robusttrain.models import NoisePredictor


class PurifierObjective(ABC):
    """From a network and images to losses; no labels."""

    #: The ``trained_by`` of the defenses that the network is for.
    purifier: str = ""

    @property
    @abstractmethod
    def idle(self) -> float:
        """The expected loss where the network leaves the noise as it is."""

    @abstractmethod
    def losses(self, network: nn.Module, images: Tensor, rng: Rng) -> Tensor:
        """(B,) of images (B, C, H, W) in [0, 1], with the randomness of ``rng``.

        Raises:
            UserError: the network cannot be trained so.
        """


@checked
@dataclass(frozen=True)
class Denoising(PurifierObjective):
    """|network(x + noise) - x|^2, a mean over pixel values.

    Args:
        sigma: standard deviation of the noise, in pixel values.
    """

    sigma: Positive = 0.1
    purifier = "denoiser"

    @property
    def idle(self) -> float:
        return self.sigma**2

    def losses(self, network: nn.Module, images: Tensor, rng: Rng) -> Tensor:
        noisy = images + self.sigma * rng.normal(images.shape[1:])
        return _square(network(noisy), images)


@checked
@dataclass(frozen=True)
class NoisePrediction(PurifierObjective):
    """|network(x_t, t) - e|^2 at a random level t, a mean over pixel values [Ho et al. 2020,
    equation 14], for images scaled to [-1, 1]. The noise levels belong to the network.
    """

    purifier = "diffusion"
    idle = 1.0

    def losses(self, network: nn.Module, images: Tensor, rng: Rng) -> Tensor:
        if not isinstance(network, NoisePredictor):
            raise UserError(
                f"--purifier.network: {type(network).__name__} is no NoisePredictor (images and"
                " noise levels to noise): take robusttrain.models.NoiseNetwork"
            )
        level = rng.integers((), 1, network.levels + 1)
        a = network.signal[level][:, None, None, None]
        noise = rng.normal(images.shape[1:])
        noisy = a.sqrt() * (2 * images - 1) + (1 - a).sqrt() * noise
        return _square(network(noisy, level), noise)


def _square(result: Tensor, aim: Tensor) -> Tensor:
    if result.shape != aim.shape:
        raise UserError(
            f"--purifier.network: makes {tuple(result.shape[1:])} of images of"
            f" {tuple(aim.shape[1:])}: it must keep their shape"
        )
    return (result - aim).square().flatten(1).mean(dim=1)


@checked
class PurifierTraining(InFloat32, pl.LightningModule):
    """Minimises an objective over images and noise, by Adam with a one-cycle schedule.

    Args:
        network: of the purifier.
        objective: what is minimised.
        learning_rate: Adam's, at its highest.
        weight_decay: Adam's, decoupled.
        seed: of all randomness in training.
    """

    def __init__(
        self,
        network: nn.Module,
        objective: PurifierObjective,
        learning_rate: Positive = 2e-3,
        weight_decay: NonNegative = 1e-4,
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.network, self.objective = network, objective
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
        loss = self.objective.losses(self.network, batch.images, rng).mean()
        if not torch.isfinite(loss):
            raise UserError(
                "purifier: the loss became NaN or infinite: lower --purifier.learning_rate"
            )
        self.log("purifier/training_loss", loss, prog_bar=True)
        return loss


@torch.no_grad()
def mean_loss(
    network: nn.Module, objective: PurifierObjective, batch: Batch, seed: int, draws: int = 4
) -> float:
    """The loss on images that nobody augmented, averaged over draws."""
    network.eval()
    total = 0.0
    for start in range(0, len(batch.images), 250):
        part = slice(start, start + 250)
        rng = Rng.for_images(seed, batch.indices[part]).fold("measure")
        for draw in range(draws):
            losses = objective.losses(network, batch.images[part], rng.fold(draw))
            total += float(losses.double().sum())
    return total / (draws * len(batch.images))
