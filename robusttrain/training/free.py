"""Free adversarial training: one backward pass for weights and images (Shafahi et al. 2019)."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor

from robusttrain.attacks import Linf, ProjectedGradient, Source, Target
from robusttrain.core.checked import Count, Share, checked
from robusttrain.core.errors import OptionError
from robusttrain.core.rng import Rng
from robusttrain.evaluation import Scenario
from robusttrain.models.declared import answer
from robusttrain.models.defended import DefendedClassifier
from robusttrain.training.crafting import brought, judge
from robusttrain.training.objectives import Passes, TrainingObjective


@checked
@dataclass(frozen=True)
class Free(TrainingObjective):
    """CE(f(x + d), y), then d <- clip(d + epsilon sign(grad_x), -epsilon, epsilon) (Shafahi et al.
    2019, algorithm 1).

    Each batch is replayed m times. One backward pass gives the gradients of both weights and
    images: the weights take a step, and d moves for the next replay. d starts at zero and goes on
    from batch to batch. An epoch has m times as many steps, so for the cost of E epochs of standard
    training, give E / m.

    Args:
        replays: m; 8 in the paper for CIFAR-10.
        threat: the ball, in the norm Linf; d moves by its epsilon.
        source: what the gradient with respect to the images is taken through; IdentityBackward to
            train through a defense.
        label_smoothing: share of the target distribution that is spread over all classes.
    """

    #: The algorithm takes a step between two replays.
    accumulates = False

    replays: Count = 8  # type: ignore[override]
    threat: Linf = field(default_factory=Linf)
    source: Source = field(default_factory=Target)
    label_smoothing: Share = 0.0
    #: d as "delta", (B, C, H, W), carried from batch to batch; it does not count in comparisons.
    _carried: dict[str, Tensor] = field(default_factory=dict, init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if not isinstance(self.threat, Linf):
            raise OptionError(
                "threat",
                type(self.threat).__name__,
                "free adversarial training moves by signs: Linf",
            )

    def inner(self) -> Scenario:
        """FGSM: the steps that d takes; no attack runs in training."""
        single = ProjectedGradient(
            steps=1, relative_step_size=1.0, random_start=False, threat=self.threat
        )
        return Scenario(single, self.source)

    def craft(self, model: DefendedClassifier, images: Tensor, labels: Tensor, rng: Rng) -> Tensor:
        return self.threat.project(images + self._delta(images), images)

    def cost(self) -> Passes:
        return Passes(training=1)

    def losses(
        self, model: DefendedClassifier, images: Tensor, crafted: Tensor, labels: Tensor, rng: Rng
    ) -> tuple[Tensor, Tensor]:
        point = crafted.detach().requires_grad_(torch.is_grad_enabled())
        # Not through `Queried`: in training, batch norm and dropout work on the whole batch.
        logits = answer(brought(self.source(model), images.device), point, rng)
        judge(logits, labels)
        if point.requires_grad:
            # The hook runs in the backward pass that computes the gradients of the weights.
            point.register_hook(self._move)
        return F.cross_entropy(
            logits, labels, reduction="none", label_smoothing=self.label_smoothing
        ), logits

    def _delta(self, images: Tensor) -> Tensor:
        delta = self._carried.get("delta")
        if delta is None or delta.shape != images.shape:
            delta = torch.zeros_like(images)
        self._carried["delta"] = delta.to(images.device)
        return self._carried["delta"]

    def _move(self, gradient: Tensor) -> None:
        epsilon = self.threat.epsilon
        moved = torch.add(self._carried["delta"], gradient.sign(), alpha=epsilon)
        self._carried["delta"] = moved.clamp_(-epsilon, epsilon)

    def state(self) -> dict[str, Tensor]:
        return dict(self._carried)

    def restore(self, state: dict[str, Tensor]) -> None:
        self._carried.update(state)
