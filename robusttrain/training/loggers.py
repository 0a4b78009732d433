"""What the curves of a training are written for, by names of ``--logger``.

TensorBoard and CSV files lie in the folder of logs. Weights & Biases and MLflow go where their own
variables say (WANDB_MODE, WANDB_PROJECT, MLFLOW_TRACKING_URI, MLFLOW_EXPERIMENT_NAME), MLflow into
a database in the folder of logs where nothing is said. A run that goes on is the same run there.
"""

from __future__ import annotations

import importlib.util
import json
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pytorch_lightning.loggers import CSVLogger, Logger, MLFlowLogger, WandbLogger
from pytorch_lightning.loggers.logger import DummyLogger

from robusttrain.core.errors import UserError, first_line
from robusttrain.core.telling import first_process
from robusttrain.storage.files import write_json
from robusttrain.training.board import Board

#: Loggers that need a package besides, which an extra of the same name installs.
EXTRAS = ("wandb", "mlflow")
PROJECT = "robusttrain"


def refuse_missing(names: Sequence[str]) -> None:
    """Raise UserError if a logger's package is not installed."""
    for name in names:
        if name in EXTRAS and importlib.util.find_spec(name) is None:
            raise UserError(f'--logger {name}: needs pip install "robusttrain[{name}]"')


class GoingOn(MLFlowLogger):
    """A run of MLflow's that goes on: MLflow has its parameters, and refuses any that changed, such
    as a folder of data that was moved.
    """

    def log_hyperparams(self, params: Any) -> None:
        pass


def begun(
    names: Sequence[str], logs: str, run: str, version: str, goes_on: bool = False
) -> list[Logger]:
    """The loggers of a run, begun, so that what they refuse is known before training.

    Args:
        names: tensorboard, csv, wandb, mlflow.
        logs: folder of all runs.
        run: name of the run.
        version: of the run.
        goes_on: whether it goes on from a checkpoint, and so do its curves.

    Raises:
        UserError: a logger cannot begin: no key, no server, a database that is no database.
    """
    folder = Path(logs) / run / version
    begin: dict[str, Callable[[], Logger]] = {
        "tensorboard": lambda: Board(logs, run, version),
        "csv": lambda: CSVLogger(logs, run, str(Path(version) / _new(folder, "csv"))),
        "wandb": lambda: _wandb(logs, f"{run}/{version}", folder, goes_on),
        "mlflow": lambda: _mlflow(logs, f"{run}/{version}", folder, goes_on),
    }
    # Only the first of several processes writes.
    elsewhere = not first_process()
    return [DummyLogger() if elsewhere and name in EXTRAS else begin[name]() for name in names]


@contextmanager
def ending(loggers: Sequence[Logger]) -> Iterator[None]:
    """When this context ends, the runs of Weights & Biases are over; Lightning leaves them open."""
    code = 1
    try:
        yield
        code = 0
    finally:
        for logger in loggers:
            if isinstance(logger, WandbLogger):
                logger.experiment.finish(exit_code=code)


def _wandb(logs: str, name: str, folder: Path, goes_on: bool) -> Logger:
    import wandb

    logger = WandbLogger(
        name,
        save_dir=logs,
        id=_remembered(folder, "wandb") if goes_on else None,
        project=os.environ.get("WANDB_PROJECT", PROJECT),
    )
    Path(logs).mkdir(parents=True, exist_ok=True)  # else wandb takes the folder of all that passes
    try:
        _remember(folder, "wandb", logger.experiment.id)
    except wandb.errors.Error as error:
        fix = "or WANDB_MODE=offline, which needs no account"
        raise UserError(f"--logger wandb: {first_line(error).rstrip('.')}; {fix}") from error
    return logger


def _mlflow(logs: str, name: str, folder: Path, goes_on: bool) -> Logger:
    from mlflow.exceptions import MlflowException

    place = Path(logs).resolve()
    place.mkdir(parents=True, exist_ok=True)
    elsewhere = os.environ.get("MLFLOW_TRACKING_URI")
    begun_before = _remembered(folder, "mlflow") if goes_on else None
    try:
        logger = (GoingOn if begun_before else MLFlowLogger)(
            os.environ.get("MLFLOW_EXPERIMENT_NAME", PROJECT),
            run_name=name,
            tracking_uri=elsewhere or f"sqlite:///{place / 'mlflow.db'}",
            artifact_location=None if elsewhere else str(place / "mlflow"),
            run_id=begun_before,
        )
        _remember(folder, "mlflow", str(logger.run_id))
    except MlflowException as error:
        fix = f"; without {folder / 'mlflow.json'} it starts anew there" if begun_before else ""
        raise UserError(f"--logger mlflow: {first_line(error).rstrip('.')}{fix}") from error
    return logger


def _new(folder: Path, name: str) -> str:
    """The name of a folder inside that is not there yet: a run that goes on overwrites nothing."""
    number, free = 1, name
    while (folder / free).exists():
        number += 1
        free = f"{name}-{number}"
    return free


def _remembered(folder: Path, logger: str) -> str | None:
    """What the run is called there, if it goes on."""
    path = folder / f"{logger}.json"
    return str(json.loads(path.read_text())["id"]) if path.is_file() else None


def _remember(folder: Path, logger: str, name: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    write_json({"id": name}, folder / f"{logger}.json")
