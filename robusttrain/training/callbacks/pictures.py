"""Pictures of an image, defended and attacked."""

from __future__ import annotations

from typing import Any

import matplotlib
import pytorch_lightning as pl
import torch
from matplotlib.figure import Figure

from robusttrain.attacks import prepared
from robusttrain.core.checked import Count, Whole, checked
from robusttrain.core.rng import Rng
from robusttrain.evaluation import Scenario
from robusttrain.reporting import centred, rgb
from robusttrain.training.callbacks.images import my_validation_images

matplotlib.use("Agg")  # dashboards are written on machines without a screen


@checked
class Pictures(pl.Callback):
    """Logs a figure: image, g(image), adversarial image, its amplified perturbation, E[g(x)] - x.

    Labels stand beside the images. Predictions are those of the defended classifier, green if
    right.

    Args:
        scenario: the attack that is shown.
        name: the attack's name.
        images: how many validation images; 0 draws no pictures.
        every: epochs between two figures; the last epoch is always drawn.
        draws: draws of a random defense that estimate E[g(x)].
        seed: of all randomness here.
    """

    def __init__(
        self,
        scenario: Scenario,
        name: str,
        images: Whole = 4,
        every: Count = 5,
        draws: Count = 64,
        seed: int = 0,
    ) -> None:
        self.scenario, self.name, self.images, self.every = scenario, name, images, every
        self.draws, self.seed = draws, seed

    def on_validation_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        epoch = trainer.current_epoch + 1
        due = epoch % self.every == 0 or epoch in (1, trainer.max_epochs)
        if (
            trainer.sanity_checking
            or not self.images
            or not due
            or trainer.global_rank
            or trainer.logger is None
        ):
            return
        board: Any = trainer.logger.experiment  # type: ignore[attr-defined]
        board.add_figure("pictures", self.draw(trainer, pl_module), global_step=trainer.global_step)

    def draw(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> Figure:
        """The figure, one row per image."""
        batch = my_validation_images(trainer, pl_module, self.images)
        names = trainer.datamodule.class_names  # type: ignore[attr-defined]
        model: Any = pl_module.model
        rng = Rng.for_images(self.seed, batch.indices).fold("pictures")
        source = self.scenario.source(model).to(batch.images.device)
        adversarial = self.scenario.attack(source, batch.images, batch.labels, rng.fold("attack"))
        perturbation = adversarial - batch.images
        with prepared(model), torch.no_grad():
            images = batch.images.clone()
            columns = {
                "x": images,
                "g(x)": images,
                f"adversarial ({self.name})": adversarial,
                "its perturbation, amplified": centred(perturbation),
            }
            if model.defense is not None:
                columns["g(x)"] = model.defense(images, rng.fold("show"))
                total = sum(
                    model.defense(images, rng.fold("mean").fold(draw)) for draw in range(self.draws)
                )
                mean = torch.as_tensor(total) / self.draws
                if mean.shape == images.shape:
                    columns[f"E[g(x)] - x, |.|inf {float((mean - images).abs().max()):.2f}"] = (
                        centred(mean - images)
                    )
            said = {
                "g(x)": model(images, rng.fold("show")).argmax(dim=1),
                f"adversarial ({self.name})": model(adversarial, rng.fold("verdict")).argmax(dim=1),
            }
        figure = Figure(figsize=(2.0 * len(columns), 2.2 * len(images)), layout="constrained")
        for row in range(len(images)):
            label = int(batch.labels[row])
            for column, (title, shown) in enumerate(columns.items()):
                axes = figure.add_subplot(
                    len(images), len(columns), row * len(columns) + column + 1
                )
                axes.imshow(rgb(shown[row]))
                axes.set_xticks([])
                axes.set_yticks([])
                if row == 0:
                    axes.set_title(title, fontsize=8)
                if title == "x":
                    axes.set_ylabel(names[label], fontsize=8)
                if title in said:
                    predicted = int(said[title][row])
                    axes.set_xlabel(
                        names[predicted], fontsize=8, color="green" if predicted == label else "red"
                    )
        return figure
