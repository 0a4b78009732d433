"""Adversarial weight perturbation around any objective (Wu et al. 2020)."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.modules.batchnorm import _BatchNorm

from robusttrain.attacks.sources.basic import Reader
from robusttrain.core.checked import Positive, Whole, checked
from robusttrain.core.errors import OptionError
from robusttrain.core.processes import mean_of_all
from robusttrain.core.rng import Rng
from robusttrain.models.defended import DefendedClassifier
from robusttrain.training.crafting import Meter
from robusttrain.training.objectives import Adversarial, Passes, TrainingObjective

#: Keeps the direction finite where a layer has no gradient (as released).
TINY = 1e-20


@checked
@dataclass(frozen=True)
class AWP(TrainingObjective):
    """min_w max_{|v_l| <= gamma |w_l|} loss(w + v) (Wu et al. 2020, eq. 7), around any other
    objective.

    The adversarial images are crafted at w. The weights of each layer then move by v_l = gamma
    |w_l| g_l / |g_l|, g_l the gradient of the objective (eq. 10 and 11 with one step, the released
    code's). The objective is then minimised at w + v, for the same adversarial images (eq. 12). As
    in the released code, biases and batch norm stay.

    The model's own weights are never written to. The loss is computed with w + v in their place and
    differentiated with respect to w, so momentum, weight decay and clipping see w. (The released
    code takes its step from w + v and subtracts v afterwards; its weight decay is that of w + v.)
    The pass that finds v leaves batch norm's statistics alone.

    Args:
        objective: what is minimised.
        gamma: radius of the perturbation relative to each layer's norm; in the paper 0.01 for
            adversarial training and 0.005 for TRADES.
        warmup: epochs at the start without perturbation (10 in the released code around TRADES).
    """

    #: v belongs to the whole batch of a step; a part of the batch has another v.
    accumulates = False

    objective: TrainingObjective = field(default_factory=Adversarial)
    gamma: Positive = 0.01
    warmup: Whole = 0

    def __post_init__(self) -> None:
        if isinstance(self.objective, AWP) or self.objective.replays > 1:
            name = type(self.objective).__name__
            raise OptionError(
                "objective",
                name,
                "AWP goes around objectives with one loss a batch and none of its own",
            )

    @property
    def inside(self) -> TrainingObjective:
        return self.objective

    @property
    def takes_mixed_labels(self) -> bool:  # type: ignore[override]
        return self.objective.takes_mixed_labels

    def at(self, epoch: int) -> TrainingObjective:
        return self.objective.at(epoch) if epoch < self.warmup else self

    def strengthened(self) -> TrainingObjective | None:
        stronger = self.objective.strengthened()
        return None if stronger is None else replace(self, objective=stronger)

    @property
    def passes_at_once(self) -> int:
        return self.objective.passes_at_once

    def cost(self) -> Passes:
        inside = self.objective.cost()
        # The gradient that finds v costs as much as the gradient that the weights follow.
        return inside._replace(training=2 * inside.training)

    def opened(self, read: Reader) -> AWP:
        return replace(self, objective=self.objective.opened(read))

    def craft(self, model: DefendedClassifier, images: Tensor, labels: Tensor, rng: Rng) -> Tensor:
        return self.objective.craft(model, images, labels, rng)

    def losses(
        self, model: DefendedClassifier, images: Tensor, crafted: Tensor, labels: Tensor, rng: Rng
    ) -> tuple[Tensor, Tensor]:
        if not torch.is_grad_enabled():  # no weights follow this loss
            return self.objective.losses(model, images, crafted, labels, rng)
        # The meter listens to the loss that the weights follow, not to the loss that finds v.
        with statistics_at_rest(model), Meter().listening():
            moved = self.perturbed(
                model, self.objective.losses(model, images, crafted, labels, rng)[0]
            )
        losses: tuple[Tensor, Tensor] = functional_call(
            _Losses(model, self.objective),
            {f"model.{name}": weight for name, weight in moved.items()},
            (images, crafted, labels, rng),
        )
        return losses

    def perturbed(self, model: nn.Module, losses: Tensor) -> dict[str, Tensor]:
        """w + v by name, differentiable with respect to w, for the losses (B,) at w.

        v belongs to the whole batch, whichever processes share it.
        """
        weights = {
            name: weight
            for name, weight in model.named_parameters()
            if weight.requires_grad and weight.dim() > 1
        }
        gradients = torch.autograd.grad(losses.mean(), list(weights.values()), allow_unused=True)
        given = {
            name: gradient
            for name, gradient in zip(weights, gradients, strict=True)
            if gradient is not None
        }
        moved = {}
        for name, gradient in zip(given, mean_of_all([*given.values()]), strict=True):
            weight = weights[name]
            length = self.gamma * weight.detach().norm() / (gradient.norm() + TINY)
            moved[name] = weight + length * gradient
        return moved


class _Losses(nn.Module):
    """An objective's losses as a module, so that torch can exchange the weights for one call."""

    def __init__(self, model: DefendedClassifier, objective: TrainingObjective) -> None:
        super().__init__()
        self.model, self.objective = model, objective

    def forward(
        self, images: Tensor, crafted: Tensor, labels: Tensor, rng: Rng
    ) -> tuple[Tensor, Tensor]:
        return self.objective.losses(self.model, images, crafted, labels, rng)


@contextmanager
def statistics_at_rest(model: nn.Module) -> Iterator[None]:
    """Within this context, batch norm in training mode does not record the batch's statistics."""
    layers = [
        layer
        for layer in model.modules()
        if isinstance(layer, _BatchNorm) and layer.track_running_stats
    ]
    awake = [layer for layer in layers if layer.training]
    try:
        for layer in awake:
            layer.track_running_stats = False
        yield
    finally:
        for layer in awake:
            layer.track_running_stats = True
