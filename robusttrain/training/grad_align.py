"""Gradient alignment around any objective (Andriushchenko & Flammarion 2020)."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from robusttrain.attacks import Linf, Threat
from robusttrain.attacks.sources.basic import Reader
from robusttrain.core.checked import NonNegative, checked
from robusttrain.core.errors import OptionError
from robusttrain.core.rng import Rng
from robusttrain.models.declared import answer
from robusttrain.models.defended import DefendedClassifier
from robusttrain.training.awp import statistics_at_rest
from robusttrain.training.crafting import brought, hard
from robusttrain.training.objectives import Adversarial, Passes, TrainingObjective


@checked
@dataclass(frozen=True)
class GradAlign(TrainingObjective):
    """loss + weight (1 - cos(grad_x CE(f(x), y), grad_x CE(f(x + eta), y))), eta uniform in the
    ball (Andriushchenko & Flammarion 2020, eq. 5).

    Where the two gradients point one way, a single step finds what many find, and single-step
    training does not collapse. As in the released code, only the second gradient is differentiated
    with respect to the weights, and an image without a gradient (all zero) counts for nothing; the
    released code divides by the number of the others, this class by that of all images. Both passes
    leave batch norm's statistics alone. x + eta is clipped to [0, 1], which eq. 5 does not say.

    Args:
        objective: what is minimised besides, such as a single step of FGSM.
        weight: lambda; 0.2 in the paper for CIFAR-10 at 8/255.
        threat: the ball of eta, in the norm Linf; None for that of the inner attack, whose radius
            it must have.
    """

    objective: TrainingObjective = field(default_factory=Adversarial)
    weight: NonNegative = 0.2
    threat: Linf | None = None

    def __post_init__(self) -> None:
        inner = self.objective.inner()
        if not isinstance(self.ball, Linf):
            fix = "eta is uniform in a cube: Linf"
            raise OptionError("threat", type(self.ball).__name__, fix)
        if inner is not None and self.ball.epsilon != inner.attack.threat.epsilon:
            fix = (
                f"the inner attack's radius is {inner.attack.threat.epsilon:g}, and this is the"
                " ball that gradients are aligned in: set objective.attack.threat.epsilon, and"
                " leave this one out"
            )
            raise OptionError("threat.epsilon", self.ball.epsilon, fix)
        if self.objective.replays > 1:
            name = type(self.objective).__name__
            raise OptionError("objective", name, "its gradient is taken with the step: no replays")

    @property
    def ball(self) -> Threat:
        """That of eta: the given one, or the inner attack's."""
        inner = self.objective.inner()
        return self.threat or (Linf() if inner is None else inner.attack.threat)

    @property
    def warmup(self) -> int:  # type: ignore[override]
        return self.objective.warmup

    @property
    def inside(self) -> TrainingObjective:
        return self.objective

    @property
    def takes_mixed_labels(self) -> bool:  # type: ignore[override]
        return self.objective.takes_mixed_labels

    @property
    def accumulates(self) -> bool:  # type: ignore[override]
        return self.objective.accumulates

    def at(self, epoch: int) -> TrainingObjective:
        return replace(self, objective=self.objective.at(epoch))

    def strengthened(self) -> TrainingObjective | None:
        stronger = self.objective.strengthened()
        return None if stronger is None else replace(self, objective=stronger)

    @property
    def passes_at_once(self) -> int:
        return self.objective.passes_at_once + 1

    def cost(self) -> Passes:
        inside = self.objective.cost()
        # The gradient at x; that at x + eta, and its own derivative, which costs as much again.
        return inside._replace(inner=inside.inner + 2, training=inside.training + 1)

    def opened(self, read: Reader) -> GradAlign:
        return replace(self, objective=self.objective.opened(read))

    def craft(self, model: DefendedClassifier, images: Tensor, labels: Tensor, rng: Rng) -> Tensor:
        return self.objective.craft(model, images, labels, rng)

    def losses(
        self, model: DefendedClassifier, images: Tensor, crafted: Tensor, labels: Tensor, rng: Rng
    ) -> tuple[Tensor, Tensor]:
        losses, logits = self.objective.losses(model, images, crafted, labels, rng)
        if not torch.is_grad_enabled():  # no weights follow this loss
            return losses, logits
        with statistics_at_rest(model):
            return losses + self.weight * self.misalignment(model, images, labels, rng), logits

    def misalignment(
        self, model: DefendedClassifier, images: Tensor, labels: Tensor, rng: Rng
    ) -> Tensor:
        """(B,): 1 - cosine of the gradients at x and at x + eta; zero where one of them is zero.

        Args:
            model: in training mode.
            images: (B, C, H, W), pixel values in [0, 1].
            labels: (B,) int64, or (B, K) shares of classes.
            rng: streams of the images, (B,).
        """
        width = self.ball.epsilon
        eta = rng.fold("alignment").uniform(images.shape[1:], -width, width).to(images.dtype)
        here = self._gradients(model, images, labels, rng, False)
        near = self._gradients(model, (images + eta).clamp(0, 1), labels, rng, True)
        here, something = _directions(here)
        near, anything = _directions(near)
        return (1 - (here * near).sum(dim=1)) * (something & anything)

    def _gradients(
        self, model: DefendedClassifier, images: Tensor, labels: Tensor, rng: Rng, graph: bool
    ) -> Tensor:
        inner = self.objective.inner()
        attacked = model if inner is None else brought(inner.source(model), images.device)
        point = images.detach().requires_grad_()
        loss = F.cross_entropy(answer(attacked, point, rng), hard(labels), reduction="sum")
        (gradient,) = torch.autograd.grad(loss, point, create_graph=graph)
        return gradient.flatten(start_dim=1)


def _directions(gradients: Tensor) -> tuple[Tensor, Tensor]:
    """Gradients (B, D) of length 1, and which of them had a length at all (B,). The others become
    constants before the division, since its derivative would not be finite.
    """
    largest = gradients.detach().abs().amax(dim=1, keepdim=True)
    some = largest > 0
    # By the largest entry first: the square of a small one may be nothing.
    scaled = torch.where(some, gradients / largest.where(some, torch.ones_like(largest)), 1.0)
    return scaled / scaled.norm(dim=1, keepdim=True), some.squeeze(1)
