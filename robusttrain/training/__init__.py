"""Training: one LightningModule, and the objectives that it minimises.

A new objective is one file here that subclasses ``TrainingObjective``, and one YAML in
``configs/training/``.
"""

from robusttrain.training.awp import AWP
from robusttrain.training.consistency import Consistency
from robusttrain.training.ensemble_adversarial import EnsembleAdversarial
from robusttrain.training.free import Free
from robusttrain.training.grad_align import GradAlign
from robusttrain.training.logit_pairing import LogitPairing
from robusttrain.training.mart import MART
from robusttrain.training.module import RobustTraining
from robusttrain.training.noisy_fgsm import NFGSM
from robusttrain.training.objectives import TRADES, Adversarial, Passes, Standard, TrainingObjective
from robusttrain.training.purifiers import (
    Denoising,
    NoisePrediction,
    PurifierObjective,
    PurifierTraining,
)
from robusttrain.training.reparameterization import ReparameterizationTraining

__all__ = [
    "AWP",
    "MART",
    "NFGSM",
    "TRADES",
    "Adversarial",
    "Consistency",
    "Denoising",
    "EnsembleAdversarial",
    "Free",
    "GradAlign",
    "LogitPairing",
    "NoisePrediction",
    "Passes",
    "PurifierObjective",
    "PurifierTraining",
    "ReparameterizationTraining",
    "RobustTraining",
    "Standard",
    "TrainingObjective",
]
