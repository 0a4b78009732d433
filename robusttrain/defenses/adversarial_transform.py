"""The defense of Xiao & Zheng (CVPR 2020): before classification, each image becomes a strong
adversarial example for another model.
"""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Literal

import torch
from torch import Tensor, nn

from robusttrain.attacks.algorithms.projected_gradient import ProjectedGradient
from robusttrain.attacks.asking import Queried
from robusttrain.attacks.parts.objectives import AwayFromPrediction, TargetedCrossEntropy
from robusttrain.attacks.parts.threats import Linf
from robusttrain.core.checked import NonNegative, Positive, Whole, checked
from robusttrain.core.rng import Rng
from robusttrain.defenses.searched import searched
from robusttrain.models import fast_copy
from robusttrain.models.defense import Defense
from robusttrain.models.foreign import load_weights
from robusttrain.models.frozen import Frozen


@checked
class AdversarialTransform(Defense):
    """g(x): least-likely-class PGD on a fixed, simpler, adversarially trained model f_b [P1 eq. 3].

        x'_0 = x + U(-Delta, Delta)
        x'_t = Proj(x'_{t-1} - eps sign grad loss(f_b(x'_{t-1}), y_L)),  t = 1..N,

    with y_L the least likely class of f_b at x and Proj the projection onto |x' - x|_inf <= Delta.

    Automatic differentiation through g gives the identity, which is the derivative of the update
    rule almost everywhere (sign' = 0; the projection and x'_0 move along with x). So an attacker
    who differentiates through g naively gets BPDA-I. Smoothed derivatives are a matter for attack
    sources.

    Args:
        model: f_b, images in [0, 1] to logits. The defense takes it over: it is in evaluation mode
            and frozen from then on.
        weights: file with f_b's weights (safetensors, or a state dict saved by torch, however
            wrapped); None for the weights that ``model`` has.
        radius: Delta, in pixel values.
        steps: N.
        step_size: eps, in pixel values; None for Delta / 6 as in the paper.
        target: "least_likely", or "predicted": away from f_b's predicted class, as in the authors'
            published notebook.
        random_start: whether x'_0 is random; otherwise it is x itself, and g is deterministic.
        clip: whether g(x) is clipped to [0, 1]; the paper does not clip.
        precision: in which f_b is differentiated; f_b's batch norm is always folded. auto: train.py
            takes the faster one on its machine, and the checkpoint keeps it; float32 until then.
        weights_which: which of several weights in the file, as ``which`` of `load_weights`.
    """

    differentiable = False
    iterative = True
    searches = True
    has_f_b = True

    def __init__(
        self,
        model: nn.Module,
        weights: str | None = None,
        radius: NonNegative = 0.2,
        steps: Whole = 13,
        step_size: Positive | None = None,
        target: Literal["least_likely", "predicted"] = "least_likely",
        random_start: bool = True,
        clip: bool = False,
        precision: Literal["auto", "float32", "bfloat16"] = "float32",
        weights_which: str | None = None,
    ) -> None:
        super().__init__()
        if weights is not None:
            load_weights(model, weights, weights_which)
        self.f_b = Frozen(model)
        self.precision = precision
        self.attack = ProjectedGradient(
            steps=steps,
            # With radius 0 the ball is a point: any positive step size gives g(x) = x.
            step_size=step_size or radius / 6 or 1.0,
            random_start=random_start,
            threat=Linf(radius, clip=clip),
            objective=TargetedCrossEntropy("least_likely")
            if target == "least_likely"
            else AwayFromPrediction(),
        )

    @property
    def random(self) -> bool:  # type: ignore[override]
        return self.attack.random_start and self.attack.threat.epsilon > 0

    @property
    def gradients(self) -> int:  # type: ignore[override]
        return self.attack.cost().gradients

    def differentiated(self, dtype: torch.dtype | None = None) -> nn.Module:
        """f_b as it is differentiated: batch norm folded, in ``dtype`` (None: that of
        ``precision``).
        """
        own = "float32" if self.precision == "auto" else self.precision
        chosen: torch.dtype = dtype or getattr(torch, own)
        # One `Queried` for all calls settles once what kind of answers f_b gives.
        return self.f_b.derived(chosen, lambda model: Queried(fast_copy(model, chosen)))

    def with_steps(self, steps: int) -> AdversarialTransform:
        """The same transformation, on the same f_b, with another number of steps."""
        twin = copy.copy(self)
        twin.attack = replace(self.attack, steps=steps)
        return twin

    def transform(self, images: Tensor, rng: Rng) -> Tensor:
        return searched(self.attack, self.differentiated(), images, rng)
