"""What ``python train.py`` does: parse, run, tell."""

from __future__ import annotations

from robusttrain.config import reparameterization
from robusttrain.config.training import read_plan
from robusttrain.core.console import ALOUD, say
from robusttrain.running.reparameterization import train_configured
from robusttrain.running.training import train


def run(arguments: list[str]) -> None:
    """Train as the command line says."""
    if reparameterization.chosen(arguments):
        train_configured(reparameterization.configure(arguments), say)
        return
    trained = train(read_plan(arguments), ALOUD)
    if trained is None:
        return
    told = {name: f"{value:.3f}" for name, value in trained.metrics.items()}
    say(f"done: {told}")
    say(f"kept {trained.folder}/{' and '.join(trained.kept)}; attack with python evaluate.py")
