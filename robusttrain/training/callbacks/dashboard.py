"""The TensorBoard dashboard: one chart of clean and robust accuracy, hyperparameters with final
metrics.
"""

from __future__ import annotations

from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.loggers import TensorBoardLogger

from robusttrain.core.parts import class_name


class Dashboard(pl.Callback):
    """Lays out custom scalars, and logs hyperparameters with the metrics of the last epoch.

    Args:
        hyperparameters: the configuration, flat: name to number or text.
    """

    def __init__(self, hyperparameters: dict[str, Any]) -> None:
        self.hyperparameters = hyperparameters

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if isinstance(trainer.logger, TensorBoardLogger) and trainer.is_global_zero:
            charts = {
                "clean and robust accuracy": [
                    "Multiline",
                    ["train/accuracy", "val/accuracy", "robust/.*"],
                ],
                "loss": ["Multiline", ["train/loss", "val/loss"]],
                "robust overfitting": [
                    "Multiline",
                    ["inner/train_accuracy", "inner/accuracy", "robust/.*"],
                ],
                "overfitting, 1 where it is flagged": ["Multiline", ["overfitting/.*"]],
                "inner attack: strength, share of the time": [
                    "Multiline",
                    ["inner/strength", "pace/inner_share"],
                ],
            }
            trainer.logger.experiment.add_custom_scalars({"robusttrain": charts})

    def on_fit_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if isinstance(trainer.logger, TensorBoardLogger) and trainer.is_global_zero:
            final = {
                f"final/{name}": float(value)
                for name, value in trainer.callback_metrics.items()
                if name.startswith(("val/", "robust/"))
            }
            trainer.logger.log_hyperparams(self.hyperparameters, final)


def flat(value: Any, name: str = "") -> dict[str, Any]:
    """A nested configuration as one level of dotted names; class paths without their packages."""
    if isinstance(value, dict):
        values: dict[str, Any] = {}
        for key, item in value.items():
            inner = (
                name
                if key == "init_args"
                else f"{name}.{key}"
                if name and key != "class_path"
                else name or key
            )
            values.update(flat(class_name(item) if key == "class_path" else item, inner))
        return values
    if isinstance(value, list) and any(isinstance(item, dict) for item in value):
        return {
            key: part
            for i, item in enumerate(value)
            for key, part in flat(item, f"{name}.{i}").items()
        }
    return {name: value if isinstance(value, int | float | str | bool) else str(value)}
