"""Backward through the steps of an iterative transformation: BPDA as the paper's text describes it
[P1 4.1].

g runs forward as it is. Backward, its steps are unrolled, and its two operators without a useful
derivative are given one. One step of g, of size eps, at the iterate x', with G the gradient of g's
own objective on f_b and u the point before the projection, as an offset from the image x:

    u   = x' + eps sgn(G(x')) - x
    x'' = x + Pi(u)

Let v be the derivative of the attacker's loss with respect to x''; sigma' stands for sgn', pi' for
Pi':

    w    = pi'(u) v                     what passes the projection
    v_x += v - w                        what the projection passes on to its centre x
    v'   = w + eps H(x') sigma'(G) w    what the iterate before gets; H: Hessian of g's objective

H times a vector is the derivative of <G, vector>: second derivatives of f_b. So the
backward pass takes N of these products, and keeps N images but no activations: memory does not grow
with N times the network.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, Protocol, cast

import torch
from torch import Tensor, nn

from robusttrain.attacks.algorithms.projected_gradient import ProjectedGradient
from robusttrain.attacks.parts.loss import Loss
from robusttrain.attacks.parts.threats import Linf
from robusttrain.attacks.sources.basic import Source, searching
from robusttrain.core.checked import Count, checked
from robusttrain.core.rng import Rng
from robusttrain.models.compiling import gradients_by
from robusttrain.models.defended import DefendedClassifier
from robusttrain.models.defense import Defense

Derivatives = Literal["automatic", "softsign", "tanh"]


def smooth_sign(gradient: Tensor, kind: Derivatives) -> Tensor:
    """sigma: G / (1 + |G|), tanh(G), or the sign itself ("automatic")."""
    if kind == "softsign":
        return gradient / (1 + gradient.abs())
    return gradient.tanh() if kind == "tanh" else gradient.sign()


def smooth_sign_derivative(gradient: Tensor, kind: Derivatives) -> Tensor:
    """sigma': 1 / (1 + |G|)^2, 1 - tanh(G)^2, or 0."""
    if kind == "softsign":
        return (1 + gradient.abs()).pow(-2)
    return 1 - gradient.tanh() ** 2 if kind == "tanh" else torch.zeros_like(gradient)


def smooth_projection(offset: Tensor, radius: float) -> Tensor:
    """The function whose derivative is ``projection_derivative`` of a smooth kind.

    The paper only names the derivative.
    """
    outside = radius + 1 / (1 + radius) - 1 / (1 + offset.abs())
    return torch.where(offset.abs() < radius, offset, offset.sign() * outside)


def projection_derivative(offset: Tensor, radius: float, kind: Derivatives) -> Tensor:
    """pi' [P1 eq. 5]: 1 inside the ball, 1 / (1 + |u|)^2 outside; with "automatic" the true one, 0
    outside.
    """
    outside = torch.zeros_like(offset) if kind == "automatic" else (1 + offset.abs()).pow(-2)
    return torch.where(offset.abs() < radius, 1.0, outside)


def _clips(attack: ProjectedGradient) -> bool:
    return isinstance(attack.threat, Linf) and attack.threat.clip


class _Unrolling(NamedTuple):
    """g's attack on f_b, and the way in which it is differentiated."""

    attack: ProjectedGradient
    f_b: nn.Module  # runs g forward
    smooth_f_b: nn.Module  # differentiated twice, in float32
    kind: Derivatives
    smooth: bool
    last: int | None = None  # steps that are unrolled backward

    @property
    def first(self) -> int:
        """The first step that is unrolled; all before it together count as the identity."""
        return 0 if self.last is None else max(0, self.attack.steps - self.last)

    @property
    def identity(self) -> bool:
        """Whether the derivative of all steps together is the identity: the projection gives to the
        centre what it takes from the iterate, and sgn' is 0. The smooth g does not clip.
        """
        return self.kind == "automatic" and (self.smooth or not _clips(self.attack))

    def step(self, point: Tensor, gradient: Tensor, images: Tensor) -> Tensor:
        """x'' of an iterate ``point``: g's own step, unless ``smooth``."""
        threat = self.attack.threat
        sign = smooth_sign(gradient, self.kind) if self.smooth else gradient.sign()
        moved = torch.add(point, sign, alpha=self.attack.alpha)
        if self.smooth:
            return images + smooth_projection(moved - images, threat.epsilon)
        return threat.project(moved, images)

    def step_back(
        self, point: Tensor, images: Tensor, loss_fn: Loss, rng: Rng, v: Tensor
    ) -> tuple[Tensor, Tensor]:
        """(v', v - w), from the derivative ``v`` with respect to x''."""
        alpha, threat = self.attack.alpha, self.attack.threat
        point = point.detach().requires_grad_()
        curved = self.kind != "automatic"  # sgn' is zero: no curvature enters
        (gradient,) = torch.autograd.grad(loss_fn(point, rng).sum(), point, create_graph=curved)
        detached = gradient.detach()
        sign = smooth_sign(detached, self.kind) if self.smooth else detached.sign()
        offset = torch.add(point.detach(), sign, alpha=alpha) - images
        if _clips(self.attack) and not curved:
            # The gradient of pixels that the box [0, 1] cut off reaches neither the iterate nor the
            # image. The smooth kinds let it pass.
            landed = offset.clamp(-threat.epsilon, threat.epsilon) + images
            v = v * ((landed > 0) & (landed < 1))
        w = projection_derivative(offset, threat.epsilon, self.kind) * v
        before = w
        if curved and gradient.requires_grad:
            weighted = alpha * smooth_sign_derivative(detached, self.kind) * w
            (product,) = torch.autograd.grad((gradient * weighted).sum(), point, allow_unused=True)
            before = w if product is None else w + product
        return before, v - w


class _Unroll(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, images: Tensor, unrolling: _Unrolling, rng: Rng) -> Tensor:
        attack, images = unrolling.attack, images.detach()
        # g itself would draw from these streams: same streams, same g.
        goal = attack.objective.aim(unrolling.f_b, images, None, rng.fold("aim"))  # type: ignore[arg-type]
        loss_fn = Loss(unrolling.f_b, attack.objective, goal)
        point = (
            attack.threat.random_start(images, rng.fold("start")) if attack.random_start else images
        )
        iterates = []
        for t in range(attack.steps):
            if t >= unrolling.first:
                iterates.append(point)
            _, gradient = attack.gradient(loss_fn, point, rng.fold(t))
            point = unrolling.step(point, gradient, images)
        ctx.save_for_backward(images, goal, *iterates)
        ctx.unrolling, ctx.rng = unrolling, rng
        return point.clone()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        images, goal, *iterates = ctx.saved_tensors
        (v,) = gradients
        if ctx.unrolling.identity:
            return v, None, None
        v_x = torch.zeros_like(images)
        loss_fn = Loss(ctx.unrolling.smooth_f_b, ctx.unrolling.attack.objective, goal)
        with (
            torch.enable_grad(),
            torch.autocast(images.device.type, enabled=False),
            gradients_by("off"),  # compiled passes have no second derivative
        ):
            first = ctx.unrolling.first
            for t in reversed(range(first, first + len(iterates))):
                v, to_centre = ctx.unrolling.step_back(
                    iterates[t - first], images, loss_fn, ctx.rng.fold(t), v
                )
                v_x += to_centre
        # The start is the image plus noise, so its gradient reaches the image.
        return v_x + v, None, None


class Searching(Protocol):
    """What a defense with the trait ``searches`` is made of: projected sign gradient on f_b."""

    attack: ProjectedGradient

    def differentiated(self, dtype: torch.dtype | None = None) -> nn.Module:
        """f_b as it is differentiated, in ``dtype`` (None: in the defense's own)."""
        ...


class _Unrolled(Defense):
    differentiable = False

    def __init__(self, g: Defense, kind: Derivatives, smooth: bool, last: int | None) -> None:
        super().__init__()
        self.g, self.kind, self.smooth, self.last = g, kind, smooth, last
        self.random = g.random

    def transform(self, images: Tensor, rng: Rng) -> Tensor:
        g = cast(Searching, self.g)
        smooth_f_b = g.differentiated(torch.float32)
        unrolling = _Unrolling(
            g.attack, g.differentiated(), smooth_f_b, self.kind, self.smooth, self.last
        )
        with torch.autocast(images.device.type, enabled=False):
            start = images.float().contiguous(memory_format=torch.channels_last)
            transformed: Tensor = _Unroll.apply(start, unrolling, rng)
        return transformed


@checked
@dataclass(frozen=True)
class UnrolledTransform(Source):
    """f_a(g(x)), differentiated through all steps of g [P1 4.1, eq. 5]. Needs second derivatives of
    f_b.

    Args:
        derivatives: what stands for the sign's and the projection's: "softsign" or "tanh" [P1 4.1,
            eq. 5]; or "automatic", as plain automatic differentiation takes them (the sign has
            none, the projection 1 or 0). For a g that does not clip to [0, 1] that is exactly the
            identity, and the attack is BPDA-I. For one that does, the gradient of a random start
            passes also where the box cut it off.
        smooth: whether the smooth functions replace sign and projection in the forward pass, too,
            and no step clips to [0, 1]. The gradient is then exact, but of another function than
            f_a(g(x)); only a random start of a g that clips is cut off by the box.
        last: how many steps at the end are unrolled; all steps before them together count as the
            identity. None for all.
    """

    derivatives: Derivatives = "softsign"
    smooth: bool = False
    last: Count | None = None
    knows = "classifier, defense"

    @property
    def same_forward(self) -> bool:  # type: ignore[override]
        return not self.smooth

    def __call__(self, target: DefendedClassifier) -> nn.Module:
        def unrolled(part: Defense) -> Defense:
            if not part.searches:
                return part
            return _Unrolled(part, self.derivatives, self.smooth, self.last)

        return DefendedClassifier(searching(target, self).rebuilt(unrolled), target.classifier)
