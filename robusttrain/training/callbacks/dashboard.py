"""The TensorBoard dashboard: a layout of charts, the table of hyperparameters, and in words what
was trained and what came out.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytorch_lightning as pl
import yaml

from robusttrain.training import hyperparameters
from robusttrain.training.board import Board, boards, step_of
from robusttrain.training.callbacks.progress import epochs
from robusttrain.training.callbacks.validated import of_last_epoch

#: Charts of the "custom scalars", with their tags: one a chart, since tags of a run share a colour.
CHARTS = {
    "clean, robust and training accuracy": "accuracy",
    "loss, clean and in training": "loss",
    "fall of robust accuracy since the best epoch": "overfitting/fall",
    "catastrophic overfitting, 1 where it is flagged": "overfitting/catastrophic",
    "robust overfitting, 1 where it is flagged": "overfitting/robust",
    "accuracy under the attack of training": "inner/accuracy",
    "strength of the attack of training": "inner/strength",
    "share of the time that it takes": "pace/inner_share",
}


class Dashboard(pl.Callback):
    """Gives every logger the configuration; on TensorBoard, lays out custom scalars, lists
    hyperparameters, and writes the final figures as a table.

    Args:
        recipe: the configuration, as a checkpoint holds it.
    """

    def __init__(self, recipe: Mapping[str, Any]) -> None:
        self.recipe = recipe

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        for logger in trainer.loggers:  # the complete configuration: hparams.yaml, parameters
            logger.log_hyperparams(dict(self.recipe))
        for board in boards(trainer, Board):
            charts = {title: ["Multiline", [f"^{tag}$"]] for title, tag in CHARTS.items()}
            board.add_custom_scalars({"robusttrain": charts})
            text = yaml.safe_dump(dict(self.recipe), sort_keys=False)
            board.add_text("configuration", f"```yaml\n{text}```")

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        # The number of epochs may hang on that of batches, which is settled by now.
        for board in boards(trainer, Board):
            values = hyperparameters.columns(self.recipe, epochs(trainer))
            for summary in hyperparameters.beginning(values):
                board._get_file_writer().add_summary(summary)

    def on_fit_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        for board in boards(trainer, Board):
            board.add_text("final", final(trainer), step_of(trainer))
            board._get_file_writer().add_summary(hyperparameters.ending())


def final(trainer: pl.Trainer) -> str:
    """The figures of the last epoch as a Markdown table."""
    figures = of_last_epoch(
        trainer.callback_metrics,
        trainer.callbacks,  # type: ignore[attr-defined]
        trainer.current_epoch,
    )
    rows = [
        f"| {name} | {float(value):.3f} |"
        for name, value in figures.items()
        if name.startswith(("val/", "robust/", "train/"))
    ]
    return "\n".join([f"| epoch {trainer.current_epoch} | |", "|---|---|", *rows])
