"""What ``python train.py`` does: parse, run, tell."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from shlex import quote

from robusttrain.commands.ranks import alone
from robusttrain.config import purifiers, reparameterization
from robusttrain.config.build import to_be_trusted
from robusttrain.config.command_line import values_of
from robusttrain.config.training import read_plan
from robusttrain.core.console import ALOUD, say
from robusttrain.core.errors import UserError
from robusttrain.core.typed import command
from robusttrain.running import training
from robusttrain.running.purifiers import train_configured as train_purifier
from robusttrain.running.reparameterization import train_configured
from robusttrain.training.plan import TrainingPlan


def run(arguments: list[str]) -> None:
    """Train as the command line says."""
    if reparameterization.chosen(arguments):
        alone()
        train_configured(reparameterization.configure(arguments), say)
    elif purifiers.chosen(arguments):
        alone()
        train_purifier(purifiers.configure(arguments), say)
    else:
        refuse_checkpoint(arguments)
        plan = read_plan(arguments)
        alone(plan.trainer)
        train(plan)


def refuse_checkpoint(arguments: list[str]) -> None:
    """Raise UserError for a model to begin with, which ``--checkpoints`` would seem to be."""
    for value in values_of(arguments, "--checkpoint"):
        raise UserError(
            f"--checkpoint {value}: a training begins with new weights; --ckpt_path goes on with a"
            f" run, and {command('evaluate')} --checkpoint attacks a trained model"
        )


def train(plan: TrainingPlan) -> training.Trained | None:
    """Carry out a plan and tell what came out, which is returned."""
    trained = training.train(plan, ALOUD)
    if trained is not None:
        if trained.went_on and not trained.metrics:
            say(f"nothing was left to train: the run had its {trained.epochs} epochs before")
        else:
            limit = plan.trainer.get("limit_val_batches")
            say(outcome(trained.metrics, trained.epochs, trained.validated, limit))
        if trained.checkpoints:
            attack = f"{command('evaluate')} --checkpoint {quote(str(trained.folder))}"
            foreign = to_be_trusted([plan.model, plan.data, plan.defense])
            trust = "".join(f" --trust {quote(each)}" for each in foreign)
            say(
                f"kept {trained.folder}/{' and '.join(trained.checkpoints)}; attack with"
                f" {attack}/{trained.checkpoints[0]}{trust}"
            )
        for line in looks(plan, trained):
            say(line)
    return trained


def looks(plan: TrainingPlan, trained: training.Trained) -> list[str]:
    """How to look at the curves, a line for each logger."""
    logs = Path(plan.logs)
    run = logs / trained.folder.parent.name / trained.folder.name
    # A run that went on has a file for each start.
    tables = sorted(run.glob("csv*/metrics.csv"), key=lambda path: path.stat().st_mtime)
    ways = {
        "tensorboard": f"curves and pictures: tensorboard --logdir {quote(plan.logs)}",
        "csv": f"curves: {quote(str(tables[-1] if tables else run))}",
        "wandb": f"curves: the link above, or wandb sync {quote(str(logs / 'wandb'))}/offline-*",
        "mlflow": f"curves: mlflow ui --backend-store-uri {quote(_mlflow(plan))}",
    }
    return [ways[name] for name in plan.loggers]


def _mlflow(plan: TrainingPlan) -> str:
    database = f"sqlite:///{Path(plan.logs).resolve() / 'mlflow.db'}"
    return os.environ.get("MLFLOW_TRACKING_URI", database)


def outcome(
    metrics: Mapping[str, float], epochs: int, validated: int = 0, limit: float | None = None
) -> str:
    """A sentence on how good the model is by now: what validation measured.

    Args:
        metrics: by name, of the last epoch.
        epochs: that are done.
        validated: of them, those that were done at the last validation; 0: there was none.
        limit: batches, or their share, that validation looks at; None for all.
    """
    if not epochs:
        return "done: no epoch was trained; the weights are those that it began with."
    after = f"done: after {epochs} epoch{'' if epochs == 1 else 's'}"
    clean = metrics.get("val/accuracy")
    if clean is None:
        since = f" since epoch {validated}" if validated else ""
        return f"{after} the model is trained; no validation measured how good it is{since}."
    looked_at = "the validation images"
    if limit is not None and repr(limit) != "1.0":  # a share; 1 is one batch
        looked_at = f"those validation images that --trainer.limit_val_batches {limit} left"
    sentence = f"{after}, {clean:.1%} of {looked_at} are right"
    robust = metrics.get("robust/worst_case")
    if robust is not None:
        sentence += (
            f", and {robust:.1%} of those that were attacked stay right under the worst attack"
        )
    return f"{sentence}."
