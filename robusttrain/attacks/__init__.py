"""Attacks, put together from parts.

An attack answers four questions, and each answer is a small part that can be exchanged:

- what does the attacker differentiate?   ``Source``             Target, IdentityBackward, ClassifierOnly, Checkpoint
- how is the gradient estimated?          ``GradientEstimator``  Backprop, Average (EOT), Smooth (NRG), Diverse (DI)
- how does the image move?                ``UpdateRule``         Sign, MomentumSign, Normalized
- where may it go?                        ``Threat``             Linf, L2

and what it maximises is the ``Objective``: CrossEntropy, Margin, DLR, KLDivergence, the targeted ones. BPDA with EOT
reads, in full::

    source = IdentityBackward()(target)
    attack = ProjectedGradient(steps=50, step_size=0.002, gradient=Average(draws=500))
    adversarial = attack(source, images, labels, rng)

Where a new idea goes: it changes the way from image to logits: a source. It needs more evaluations around one point:
an estimator. It needs memory between steps: an update rule. It needs both, or no gradient at all: an ``Attack`` in a
file of its own. Nothing in this package knows of Lightning, of data sets or of presets.
"""

from robusttrain.attacks.base import Attack, Cost
from robusttrain.attacks.gradients import Average, Backprop, Diverse, GradientEstimator, Smooth
from robusttrain.attacks.loss import Loss, LossFn, call_model
from robusttrain.attacks.objectives import (
    DLR,
    AwayFromPrediction,
    CrossEntropy,
    KLDivergence,
    Margin,
    Objective,
    TargetedCrossEntropy,
    TargetedDLR,
    TargetedMargin,
)
from robusttrain.attacks.prepare import prepared
from robusttrain.attacks.projected_gradient import ProjectedGradient
from robusttrain.attacks.sources import Checkpoint, ClassifierOnly, IdentityBackward, Source, Target
from robusttrain.attacks.threats import L2, Linf, Threat
from robusttrain.attacks.updates import MomentumSign, Normalized, Sign, UpdateRule

__all__ = [
    "DLR",
    "L2",
    "Attack",
    "Average",
    "AwayFromPrediction",
    "Backprop",
    "Checkpoint",
    "ClassifierOnly",
    "Cost",
    "CrossEntropy",
    "Diverse",
    "GradientEstimator",
    "IdentityBackward",
    "KLDivergence",
    "Linf",
    "Loss",
    "LossFn",
    "Margin",
    "MomentumSign",
    "Normalized",
    "Objective",
    "ProjectedGradient",
    "Sign",
    "Smooth",
    "Source",
    "Target",
    "TargetedCrossEntropy",
    "TargetedDLR",
    "TargetedMargin",
    "Threat",
    "UpdateRule",
    "call_model",
    "prepared",
]
