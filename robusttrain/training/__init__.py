"""Training: one LightningModule, and the objectives that it minimises.

A new objective is one file here that subclasses ``TrainingObjective``, and one YAML in ``configs/training/``.
"""

from robusttrain.training.ensemble_adversarial import EnsembleAdversarial
from robusttrain.training.module import RobustTraining
from robusttrain.training.objectives import TRADES, Adversarial, Standard, TrainingObjective
from robusttrain.training.reparameterization import ReparameterizationTraining

__all__ = [
    "TRADES",
    "Adversarial",
    "EnsembleAdversarial",
    "ReparameterizationTraining",
    "RobustTraining",
    "Standard",
    "TrainingObjective",
]
