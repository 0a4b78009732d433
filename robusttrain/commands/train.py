"""What ``python train.py`` does: parse, run, tell."""

from __future__ import annotations

from robusttrain.config import reparameterization
from robusttrain.config.training import read_plan
from robusttrain.core.console import ALOUD, say
from robusttrain.running import training
from robusttrain.running.reparameterization import train_configured
from robusttrain.training.plan import TrainingPlan


def run(arguments: list[str]) -> None:
    """Train as the command line says."""
    if reparameterization.chosen(arguments):
        train_configured(reparameterization.configure(arguments), say)
    else:
        train(read_plan(arguments))


def train(plan: TrainingPlan) -> None:
    """Carry out a plan and tell what came out."""
    trained = training.train(plan, ALOUD)
    if trained is not None:
        told = {name: f"{value:.3f}" for name, value in trained.metrics.items()}
        say(f"done: {told}")
        say(f"kept {trained.folder}/{' and '.join(trained.kept)}; attack with python evaluate.py")
