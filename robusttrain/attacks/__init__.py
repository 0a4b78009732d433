"""Attacks, put together from parts.

[P1] to [P5] are the papers that ``docs/code-beside-papers.md`` names.

An attack answers four questions. Each answer is a small part that can be exchanged:

- What does the attacker differentiate? A ``Source``: Target, ThroughDefense, IdentityBackward,
  TwinBackward, UnrolledTransform, ClassifierOnly, FixedRandomness, FewerSteps; patterns that a
  defense may draw: SinglePattern, EnsemblePattern; other models, in files or built: Checkpoint or
  OtherModel, OwnSurrogate or OtherDefense, Reparameterization or StandIn; several of these:
  Ensemble.
- How is the gradient estimated? A ``GradientEstimator``: Backprop, Average (EOT), AverageLogits,
  Smooth (NRG), Diverse (DI), FiniteDifference.
- How does the image move? An ``UpdateRule``: Sign, MomentumSign, Normalized,
  MomentumNormalized, UnitRMSD, Adam.
- Where may it go? A ``Threat``: Linf, L2, RMSD.

What it maximises is the ``Objective``: CrossEntropy, WrongProbability, Margin, SoftMargin, DLR,
AwayFromPrediction, KLDivergence, the targeted ones. BPDA with EOT reads, in full:

    source = IdentityBackward()(target)
    attack = ProjectedGradient(steps=50, step_size=0.002, gradient=Average(draws=500))
    adversarial = attack(source, images, labels, rng)

That loop is ProjectedGradient's; MeanStart begins it elsewhere, and APGD chooses its own step size.
Attacks that only query the model have loops of their own: HopSkipJump (labels), Square, GenAttack
and RandomNoise (scores). So have CarliniWagner, DDN, DeepFool, FAB, FMN, NearestBoundary
and SuperDeepFool, which look for the nearest adversarial image, and Optimization, which has an Adam
for each of its models. Wrappers make attacks of attacks: Restarts, Several (a cascade, or the best
of all) and MinimalNorm.

An idea that changes the way from image to logits becomes a source. An idea that needs more
evaluations around one point becomes an estimator. An idea that needs memory between steps becomes
an update rule. An idea that needs both, or no gradient at all, becomes an ``Attack`` in a file of
its own, as ``APGD`` and ``Square``. Nothing in this package knows of Lightning, of data sets or of
presets.
"""

from robusttrain.attacks.algorithms.apgd import APGD
from robusttrain.attacks.algorithms.carlini_wagner import CarliniWagner
from robusttrain.attacks.algorithms.ddn import DDN
from robusttrain.attacks.algorithms.deepfool import DeepFool
from robusttrain.attacks.algorithms.fab import FAB
from robusttrain.attacks.algorithms.fmn import FMN
from robusttrain.attacks.algorithms.genattack import GenAttack
from robusttrain.attacks.algorithms.hopskipjump import HopSkipJump
from robusttrain.attacks.algorithms.mean_start import MeanStart, mean_transform
from robusttrain.attacks.algorithms.minimal_norm import MinimalNorm
from robusttrain.attacks.algorithms.nearest_boundary import NearestBoundary
from robusttrain.attacks.algorithms.optimization import Optimization
from robusttrain.attacks.algorithms.projected_gradient import ProjectedGradient
from robusttrain.attacks.algorithms.random_noise import RandomNoise
from robusttrain.attacks.algorithms.square import Square
from robusttrain.attacks.algorithms.superdeepfool import SuperDeepFool
from robusttrain.attacks.algorithms.wrappers import Restarts, Several
from robusttrain.attacks.asking import Queried, ask_twice, call_model, loss_terms
from robusttrain.attacks.base import Attack, Cost
from robusttrain.attacks.parts.average_logits import AverageLogits
from robusttrain.attacks.parts.finite_difference import FiniteDifference
from robusttrain.attacks.parts.gradients import (
    Average,
    Backprop,
    Diverse,
    GradientEstimator,
    Smooth,
)
from robusttrain.attacks.parts.loss import Loss, LossFn
from robusttrain.attacks.parts.objectives import (
    DLR,
    AwayFromPrediction,
    CrossEntropy,
    KLDivergence,
    Margin,
    Objective,
    SoftMargin,
    TargetedCrossEntropy,
    TargetedDLR,
    TargetedMargin,
    WrongProbability,
)
from robusttrain.attacks.parts.threats import L2, RMSD, Linf, Threat
from robusttrain.attacks.parts.updates import (
    Adam,
    MomentumNormalized,
    MomentumSign,
    Normalized,
    Sign,
    UnitRMSD,
    UpdateRule,
)
from robusttrain.attacks.prepare import prepared
from robusttrain.attacks.sources.basic import (
    ClassifierOnly,
    FewerSteps,
    FixedRandomness,
    IdentityBackward,
    Source,
    Target,
)
from robusttrain.attacks.sources.known import KnownDraw
from robusttrain.attacks.sources.patterns import EnsemblePattern, SinglePattern
from robusttrain.attacks.sources.stand_ins import Reparameterization, StandIn
from robusttrain.attacks.sources.surrogates import (
    Checkpoint,
    Ensemble,
    OtherDefense,
    OtherModel,
    OwnSurrogate,
)
from robusttrain.attacks.sources.through import ThroughDefense
from robusttrain.attacks.sources.twin_backward import TwinBackward
from robusttrain.attacks.sources.unrolled import UnrolledTransform

__all__ = [
    "APGD",
    "DDN",
    "DLR",
    "FAB",
    "FMN",
    "L2",
    "Adam",
    "Attack",
    "Average",
    "AverageLogits",
    "AwayFromPrediction",
    "Backprop",
    "CarliniWagner",
    "Checkpoint",
    "ClassifierOnly",
    "Cost",
    "CrossEntropy",
    "DeepFool",
    "Diverse",
    "Ensemble",
    "EnsemblePattern",
    "FewerSteps",
    "FiniteDifference",
    "FixedRandomness",
    "GenAttack",
    "GradientEstimator",
    "HopSkipJump",
    "IdentityBackward",
    "KLDivergence",
    "KnownDraw",
    "Linf",
    "Loss",
    "LossFn",
    "Margin",
    "MeanStart",
    "MinimalNorm",
    "MomentumNormalized",
    "MomentumSign",
    "NearestBoundary",
    "Normalized",
    "Objective",
    "Optimization",
    "OtherDefense",
    "OtherModel",
    "OwnSurrogate",
    "ProjectedGradient",
    "Queried",
    "RMSD",
    "RandomNoise",
    "Reparameterization",
    "Restarts",
    "Several",
    "Sign",
    "SinglePattern",
    "Smooth",
    "SoftMargin",
    "Source",
    "Square",
    "StandIn",
    "SuperDeepFool",
    "Target",
    "TargetedCrossEntropy",
    "TargetedDLR",
    "TargetedMargin",
    "Threat",
    "ThroughDefense",
    "TwinBackward",
    "UnitRMSD",
    "UnrolledTransform",
    "UpdateRule",
    "WrongProbability",
    "ask_twice",
    "call_model",
    "loss_terms",
    "mean_transform",
    "prepared",
]
