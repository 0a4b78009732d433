"""The TensorBoard of a training: what Lightning logs, laid out to be read.

TensorBoard gives each folder of events, which it calls a run, one colour, and cuts the highest and
lowest twentieth of a chart's points off. So the accuracies of one run, and its losses, are written
once more into folders of their own below that of the run, under one tag; and two further folders
hold 0 and 1 under the tag of every accuracy or other share: such a chart shows all of them.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pytorch_lightning as pl
from pytorch_lightning.loggers import TensorBoardLogger
from pytorch_lightning.utilities import rank_zero_only
from torch.utils.tensorboard import SummaryWriter

#: Tags of charts that show several metrics of one run: folder, and metric, of each line.
TOGETHER = {
    "accuracy": {
        "clean": "val/accuracy",
        "robust": "robust/worst_case",
        "training": "train/accuracy",
    },
    "loss": {"clean": "val/loss", "training": "train/loss"},
}
#: Folders whose lines are the ends of the axis.
ENDS = {"scale-0": 0.0, "scale-1": 1.0}
#: The number of the epoch, counted from 1: what it is at a step.
EPOCH = "pace/epoch"


class Board(TensorBoardLogger):
    """Lightning's logger, with the accuracies of a run in colours of their own.

    Args:
        folder: of all runs.
        name: of the run.
        version: of the run; None for the next one.
    """

    def __init__(self, folder: str, name: str, version: int | str | None = None) -> None:
        super().__init__(folder, name=name, version=version, default_hp_metric=False)
        self._beside: dict[str, SummaryWriter] = {}
        #: The epoch, and the step of the chart of all accuracies, that were logged last.
        self._epoch = 0.0
        self._scaled: int | None = None

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Log metrics of a step: as they are, and what belongs together once more."""
        shown = {name: float(value) for name, value in metrics.items()}
        if (epoch := shown.pop("epoch", None)) is not None and epoch + 1 != self._epoch:
            # Lightning gives it with every group of metrics, the same one several times an epoch.
            shown[EPOCH] = self._epoch = epoch + 1
        super().log_metrics(shown, step)
        shares = {name for name in shown if is_share(name)}
        for chart, lines in TOGETHER.items():
            for line, name in lines.items():
                if name in shown:
                    self._writer(line).add_scalar(chart, shown[name], step)
        if shares & {*TOGETHER["accuracy"].values()} and step != self._scaled:
            self._scaled = step  # validation and training of an epoch come one after the other
            shares.add("accuracy")
        for line, end in ENDS.items():
            for name in sorted(shares):
                self._writer(line).add_scalar(name, end, step)

    def save(self) -> None:
        super().save()
        for writer in self._beside.values():
            writer.flush()

    def finalize(self, status: str) -> None:
        super().finalize(status)
        for writer in self._beside.values():
            writer.close()

    def _writer(self, line: str) -> SummaryWriter:
        if line not in self._beside:
            self._beside[line] = SummaryWriter(str(Path(self.log_dir) / line))
        return self._beside[line]


def boards(
    trainer: pl.Trainer, kind: type[TensorBoardLogger] = TensorBoardLogger
) -> list[SummaryWriter]:
    """The TensorBoards of a training, which alone show pictures and text; none in other processes
    than the first one.

    Args:
        trainer: of the training.
        kind: `Board` for those that are laid out here.
    """
    if not trainer.is_global_zero:
        return []
    return [each.experiment for each in trainer.loggers if isinstance(each, kind)]


def is_share(name: str) -> bool:
    """Whether a metric lies between 0 and 1, and is read against them: accuracies, and flags."""
    flags = ("overfitting/catastrophic", "overfitting/robust", "inner/strength", "pace/inner_share")
    return name.startswith("robust/") or name.endswith("accuracy") or name in flags


def step_of(trainer: pl.Trainer) -> int:
    """The step at which Lightning logs the metrics of an epoch, for what is logged beside them:
    that of the last batch, counted from 0.
    """
    return max(0, trainer.global_step - 1)
