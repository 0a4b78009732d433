"""Pictures of an image, defended and attacked."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pytorch_lightning as pl
import torch
from matplotlib.figure import Figure
from torch import Tensor

from robusttrain.attacks import prepared
from robusttrain.core.checked import Count, Whole, checked
from robusttrain.core.rng import Rng
from robusttrain.data import Batch
from robusttrain.evaluation import Scenario
from robusttrain.reporting import canvas, rgb
from robusttrain.reporting.canvas import RIGHT, WRONG
from robusttrain.training.board import boards, step_of
from robusttrain.training.callbacks.images import my_validation_images

#: Inches of a picture, and points of its words. TensorBoard shrinks a figure to its card, which is
#: 370 pixels wide and half as high: what is to be read there is large, in a figure of one row.
SIDE, POINTS = 0.95, 9.5
#: Dots an inch: opened in its actual size, the figure is large.
DPI = 200
#: Images below so many pixels are enlarged by repeating pixels, never by mixing them.
SMALL = int(SIDE * DPI)


@dataclass(frozen=True)
class Column:
    """One kind of picture, for every image.

    Args:
        title: what it is.
        pictures: (B, C, H, W) in [0, 1].
        answers: (B,) what the classifier answers to these very pictures; None where it was not
            asked.
    """

    title: str
    pictures: Tensor
    answers: Tensor | None = None


@checked
class Pictures(pl.Callback):
    """Logs a figure for each image, as ``attack/<name>/<number>``: the image, what a defense makes
    of it, what the attack makes of it, and the changes, amplified.

    The label stands on the left. What the defended classifier answers stands under the picture that
    it was given; blue if right. A change is amplified by one factor for all images, which its title
    gives, so that grey is no change and the largest one is black or white. Without a defense there
    are no pictures of g. Only TensorBoard shows them: for other loggers none are drawn.

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
        shown_on = boards(trainer)
        if trainer.sanity_checking or not self.images or not due or not shown_on:
            return
        for number, figure in enumerate(self.draw(trainer, pl_module), start=1):
            for board in shown_on:
                tag = f"attack/{self.name}/{number}"
                board.add_figure(tag, figure, global_step=step_of(trainer))

    def draw(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> list[Figure]:
        """The figures, one for each image."""
        batch = my_validation_images(trainer, pl_module, self.images)
        names = trainer.datamodule.class_names  # type: ignore[attr-defined]
        columns = self.columns(pl_module.model, batch)
        return [
            row(columns, place, label, names) for place, label in enumerate(batch.labels.tolist())
        ]

    def columns(self, model: Any, batch: Batch) -> list[Column]:
        """What the figure shows.

        Args:
            model: the defended classifier.
            batch: validation images, on its device.
        """
        rng = Rng.for_images(self.seed, batch.indices).fold("pictures")
        source = self.scenario.source(model).to(batch.images.device)
        adversarial = self.scenario.attack(source, batch.images, batch.labels, rng.fold("attack"))
        with prepared(model), torch.no_grad():
            images = batch.images.clone()
            answers = model(images, rng.fold("show")).argmax(dim=1)
            said = model(adversarial, rng.fold("verdict")).argmax(dim=1)
            attacked = [
                Column("attacked", adversarial, said),
                amplified("change", adversarial - images),
            ]
            if model.defense is None:
                return [Column("image", images, answers), *attacked]
            defended = Column("g(image)", model.defense(images, rng.fold("show")))
            total = sum(
                model.defense(images, rng.fold("mean").fold(draw)) for draw in range(self.draws)
            )
            mean = torch.as_tensor(total) / self.draws
        # Of another size than the image there is no difference to show.
        moved = [amplified("mean g", mean - images)] if mean.shape == images.shape else []
        return [Column("image", images, answers), defended, *attacked, *moved]


def row(columns: Sequence[Column], place: int, label: int, names: Sequence[str]) -> Figure:
    """The pictures of one image side by side.

    Args:
        columns: what is shown.
        place: of the image in them.
        label: of the image.
        names: of the classes.
    """
    figure = canvas(SIDE * len(columns) + 0.2, SIDE + 0.45, DPI)
    for axes, column in zip(figure.subplots(1, len(columns)), columns, strict=True):
        picture = rgb(column.pictures[place])
        axes.imshow(picture, interpolation="nearest" if len(picture) < SMALL else None)
        axes.set_xticks([])
        axes.set_yticks([])
        axes.set_title(column.title, fontsize=POINTS, pad=3)
        if column.answers is not None:
            answer = int(column.answers[place])
            colour = RIGHT if answer == label else WRONG
            axes.set_xlabel(f"says {names[answer]}", fontsize=POINTS, color=colour, labelpad=2)
    figure.axes[0].set_ylabel(f"is {names[label]}", fontsize=POINTS, labelpad=2)
    return figure


def amplified(what: str, change: Tensor) -> Column:
    """Changes (B, C, H, W) as grey plus or minus, times a factor that the title gives."""
    largest = float(change.abs().max())
    if not largest:
        return Column(f"{what}: none", torch.full_like(change, 0.5))
    factor = float(f"{0.5 / largest:.2g}")
    return Column(f"{what} \u00d7 {factor:g}", 0.5 + factor * change)
