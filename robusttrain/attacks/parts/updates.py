"""Update rules: how a gradient becomes a step.

A rule returns steps of unit size; the algorithm scales them. The memory between steps is passed
around as ``state``, so a rule itself never changes.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from robusttrain.attacks.parts.differentiation import of_order_one, order_of
from robusttrain.attacks.parts.threats import Threat, per_image
from robusttrain.core.checked import NonNegative, Positive, checked
from robusttrain.core.errors import OptionError, within

_TINY = torch.finfo(torch.float32).tiny
#: Gradients whose largest entry is below are too faint for what is added to Adam's divisor.
FAINT = 2.0**-20


class UpdateRule(ABC):
    """From gradient (B, C, H, W) to step (B, C, H, W)."""

    def init(self, images: Tensor) -> Any:
        """The state before the first step; None for rules without memory."""
        return None

    @abstractmethod
    def step(self, gradient: Tensor, state: Any) -> tuple[Tensor, Any]:
        """The step to take along ``gradient``, and the state for the next one."""


@dataclass(frozen=True)
class Sign(UpdateRule):
    """Steepest ascent in the L-infinity norm: the sign of the gradient (Goodfellow et al. 2015)."""

    def step(self, gradient: Tensor, state: Any) -> tuple[Tensor, Any]:
        return gradient.sign(), state


def _accumulated(gradient: Tensor, state: Tensor, decay: float) -> Tensor:
    """m = mu m + grad / |grad|_1, the memory of momentum (Dong et al. 2018, eq. 6)."""
    # A gradient that is exactly zero, or NaN, adds nothing: it must not poison the memory.
    # Of order one, so that its length is no infinity.
    gradient, _ = of_order_one(gradient.nan_to_num(0.0, 0.0, 0.0))
    length = gradient.abs().sum(dim=(1, 2, 3)).clamp_min(_TINY)
    return decay * state + gradient / per_image(length)


@checked
@dataclass(frozen=True)
class MomentumSign(UpdateRule):
    """Sign of an accumulated gradient: m = mu m + grad / |grad|_1, step sign(m) (Dong et al. 2018,
    [P2 eq. 4, 7]). In the L2 norm it is `MomentumNormalized`.

    Args:
        decay: mu; 0 gives the sign of the gradient alone, 1 the papers' momentum.
    """

    decay: NonNegative = 1.0

    def init(self, images: Tensor) -> Tensor:
        return torch.zeros_like(images)

    def step(self, gradient: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        momentum = _accumulated(gradient, state, self.decay)
        return momentum.sign(), momentum


@dataclass(frozen=True)
class Normalized(UpdateRule):
    """Steepest ascent in the L2 norm: the gradient divided by its Euclidean length."""

    def step(self, gradient: Tensor, state: Any) -> tuple[Tensor, Any]:
        # Scaled before squaring: gradients of saturated models underflow, others overflow. NaN adds
        # nothing.
        gradient = gradient.nan_to_num(0.0, 0.0, 0.0)
        gradient = gradient / per_image(gradient.abs().amax(dim=(1, 2, 3)).clamp_min(_TINY))
        length = gradient.flatten(1).norm(dim=1).clamp_min(_TINY)
        return gradient / per_image(length), state


@checked
@dataclass(frozen=True)
class MomentumNormalized(UpdateRule):
    """An accumulated gradient divided by its Euclidean length: m = mu m + grad / |grad|_1, step m /
    |m|_2, momentum in the L2 norm (Dong et al. 2018, section 3.1).

    Args:
        decay: mu; 0 gives the normalised gradient alone, 1 the paper's momentum.
    """

    decay: NonNegative = 1.0

    def init(self, images: Tensor) -> Tensor:
        return torch.zeros_like(images)

    def step(self, gradient: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        momentum = _accumulated(gradient, state, self.decay)
        return Normalized().step(momentum, None)[0], momentum


@dataclass(frozen=True)
class UnitRMSD(UpdateRule):
    """Steepest ascent in the `RMSD` norm: the gradient divided by the root of its mean square."""

    def step(self, gradient: Tensor, state: Any) -> tuple[Tensor, Any]:
        unit, state = Normalized().step(gradient, state)
        return unit * math.sqrt(unit.shape[1:].numel()), state


class AdamState(NamedTuple):
    """Memory of `Adam`, first dimension the images.

    Args:
        mean: m (B, C, H, W), the running mean of gradients.
        square: v (B, C, H, W), the running mean of their squares.
        steps: t, the steps taken.
        power: (B,), the power of two by which the gradients in memory are divided; 0 before the
            first that is not zero.
    """

    mean: Tensor
    square: Tensor
    steps: int
    power: Tensor

    def keep(self, which: Tensor) -> AdamState:
        """The memory of some of the images, for algorithms that let the others go."""
        return AdamState(self.mean[which], self.square[which], self.steps, self.power[which])


@checked
@dataclass(frozen=True)
class Adam(UpdateRule):
    """m^ / (sqrt(v^) + tiny) (Kingma & Ba 2015, algorithm 1): about 1 for every pixel whose
    gradient keeps its sign.

    The paper has no form of it for a norm. In L2 a step of unit size is about as long as the root
    of the number of pixel values: choose the step size accordingly.

    m = beta1 m + (1 - beta1) grad, v = beta2 v + (1 - beta2) grad^2; m^ = m / (1 - beta1^t), v^ = v
    / (1 - beta2^t).

    The scale of logits decides how long a step is next to ``tiny``: where they are a billionth of
    what is usual, no step would be taken. So an image's gradients that have all been below `FAINT`
    are divided by the power of two of the largest of them; divided by 1, all others stay as they
    are, bit for bit.

    Args:
        beta1: how much of m remains after a step.
        beta2: how much of v remains after a step.
        tiny: added to the divisor, the paper's epsilon.
    """

    beta1: float = 0.9
    beta2: float = 0.999
    tiny: Positive = 1e-8

    def __post_init__(self) -> None:
        within("beta1", self.beta1, 0, 0.999999)
        within("beta2", self.beta2, 0, 0.999999)

    def init(self, images: Tensor) -> AdamState:
        nothing = torch.zeros_like(images)
        return AdamState(nothing, nothing, 0, images.new_zeros(len(images)))

    def step(self, gradient: Tensor, state: AdamState) -> tuple[Tensor, AdamState]:
        # As in momentum: one NaN, or a square that overflows, would stay in the memory for
        # ever.
        gradient = gradient.nan_to_num(0.0, 0.0, 0.0).clamp(-1e18, 1e18)
        power = torch.maximum(state.power, order_of(gradient))
        power = torch.where(power < FAINT, power, 1)
        divisor = torch.where(power > 0, power, 1)
        gradient = gradient / per_image(divisor)
        # What is remembered, in the scale of now
        change = per_image(state.power / divisor)
        mean = torch.lerp(gradient, state.mean * change, self.beta1)
        square = torch.lerp(gradient.square(), state.square * change.square(), self.beta2)
        t = state.steps + 1
        root = (square / (1 - self.beta2**t)).sqrt_().add_(self.tiny)
        return mean.div(1 - self.beta1**t).div_(root), AdamState(mean, square, t, power)


#: Steepest ascent in each norm.
STEEPEST: dict[str, UpdateRule] = {"linf": Sign(), "l2": Normalized(), "rmsd": UnitRMSD()}


#: The same along an accumulated gradient. (Signs have RMSD 1.)
MOMENTUM: dict[str, type[MomentumSign | MomentumNormalized]] = {
    "linf": MomentumSign,
    "l2": MomentumNormalized,
    "rmsd": MomentumSign,
}


def in_norm(rule: UpdateRule, norm: str) -> UpdateRule:
    """The rule that does in this norm what ``rule`` does in its own: steepest ascent, or momentum
    of the same decay. Rules and norms that have no other form stay.
    """
    if norm in STEEPEST and rule in STEEPEST.values():
        return STEEPEST[norm]
    # A class of somebody else's that is derived from one of ours is no longer ours.
    if norm in MOMENTUM and type(rule) in MOMENTUM.values():
        return MOMENTUM[norm](rule.decay)  # type: ignore[attr-defined]
    return rule


def check_rule(rule: UpdateRule, threat: Threat) -> None:
    """Raise OptionError if a rule is one of steepest ascent, or momentum, in another norm: it would
    go nearly nowhere in this one, or out of the ball and back.
    """
    right = in_norm(rule, threat.norm)
    if right == rule:
        return
    kind = "the steepest ascent" if rule in STEEPEST.values() else "momentum"
    forms: list[tuple[str, Any]] = [*STEEPEST.items(), *MOMENTUM.items()]
    norm = next(norm for norm, form in forms if type(rule) in (form, type(form)))
    fix = f"is {kind} in {norm}, and the threat is one of {threat.norm}: take"
    raise OptionError("rule", type(rule).__name__, f"{fix} {type(right).__name__}")
