"""Training: one LightningModule, and the objectives that it minimises.

A new objective is one file here that subclasses ``TrainingObjective``, and one YAML in ``configs/training/``.
"""

from robusttrain.training.module import RobustTraining
from robusttrain.training.objectives import TRADES, Adversarial, Standard, TrainingObjective

__all__ = ["TRADES", "Adversarial", "RobustTraining", "Standard", "TrainingObjective"]
