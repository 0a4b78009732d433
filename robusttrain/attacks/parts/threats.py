"""Threat models: where an adversarial image may go.

A threat is a ball around the image, in a norm over all pixels and channels, within the box [0, 1].
A threat draws a random start in the ball, and projects images back into the ball. Both are pure
functions of images.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterable
from dataclasses import dataclass, is_dataclass, replace
from typing import Any, Self

import torch
from torch import Tensor

from robusttrain.core.checked import NonNegative, checked
from robusttrain.core.errors import OptionError
from robusttrain.core.rng import Rng


def per_image(values: Tensor) -> Tensor:
    """(B,) to (B, 1, 1, 1), to scale images with one number each."""
    return values.view(-1, 1, 1, 1)


def need_norm(attack: object, threat: Threat, norms: Iterable[str]) -> None:
    """Raise OptionError unless an attack knows a threat's norm."""
    known = [*norms]
    if threat.norm not in known:
        name = type(attack).__name__
        fix = f"must be of a norm that {name} knows: {', '.join(known)}"
        raise OptionError("threat", threat, fix)


class Threat(ABC):
    """A ball of radius ``epsilon``, in units of pixel values in [0, 1]."""

    #: The norm's name; not annotated, since a command line resolves annotations in the module of
    #: each subclass.
    norm = ""
    epsilon: float

    def at(self, epsilon: float) -> Self:
        """The same ball with another radius. A threat that is no dataclass has to say how.

        Raises:
            OptionError: the threat does not say.
        """
        if not is_dataclass(self):
            name = type(self).__name__
            raise OptionError(
                "threat", name, "make it a frozen dataclass with a field epsilon, or define at()"
            )
        return replace(self, epsilon=epsilon)

    @abstractmethod
    def random_start(self, images: Tensor, rng: Rng) -> Tensor:
        """(B, C, H, W): one point of the ball around each image, uniformly distributed before the
        box clips it.
        """

    @abstractmethod
    def project(self, adversarial: Tensor, images: Tensor) -> Tensor:
        """(B, C, H, W): ``adversarial`` moved into the ball around ``images`` and into the box."""

    @abstractmethod
    def distance(self, adversarial: Tensor, images: Tensor) -> Tensor:
        """(B,): how far each adversarial image lies from its image, in this norm."""


@checked
@dataclass(frozen=True)
class Linf(Threat):
    """Every pixel may change by at most epsilon.

    Args:
        epsilon: largest change of a pixel value, for images in [0, 1].
        clip: whether images must stay in [0, 1] (an attacker's must; the transformation of [P1 eq.
            3] need not).
    """

    epsilon: NonNegative = 0.031
    clip: bool = True
    norm = "linf"

    def random_start(self, images: Tensor, rng: Rng) -> Tensor:
        noise = rng.uniform(images.shape[1:], -self.epsilon, self.epsilon).to(images.dtype)
        return self.project(images + noise, images)

    def project(self, adversarial: Tensor, images: Tensor) -> Tensor:
        projected = (adversarial - images).clamp_(-self.epsilon, self.epsilon).add_(images)
        return projected.clamp_(0, 1) if self.clip else projected

    def distance(self, adversarial: Tensor, images: Tensor) -> Tensor:
        return (adversarial - images).abs().amax(dim=(1, 2, 3))


@checked
@dataclass(frozen=True)
class L2(Threat):
    """The Euclidean length of the change is at most epsilon.

    Args:
        epsilon: largest Euclidean norm of the change of an image, for images in [0, 1].
        clip: whether images must stay in [0, 1].
    """

    epsilon: NonNegative = 0.5
    clip: bool = True
    norm = "l2"

    def random_start(self, images: Tensor, rng: Rng) -> Tensor:
        direction = rng.normal(images.shape[1:])
        # The share of the ball within radius r grows with r to the power of the dimension.
        radius = rng.uniform((1,)).view(-1) ** (1 / direction[0].numel())
        length = direction.flatten(1).norm(dim=1).clamp_min(torch.finfo(torch.float32).tiny)
        noise = direction * per_image(self.epsilon * radius / length)
        return self.project(images + noise.to(images.dtype), images)

    def project(self, adversarial: Tensor, images: Tensor) -> Tensor:
        change = adversarial - images
        length = euclidean(change)
        shrink = self.epsilon / length.clamp_min(max(self.epsilon, torch.finfo(torch.float32).tiny))
        # The box is convex and holds the image, so clipping afterwards never leaves the ball.
        projected = change.mul_(per_image(shrink)).add_(images)
        return projected.clamp_(0, 1) if self.clip else projected

    def distance(self, adversarial: Tensor, images: Tensor) -> Tensor:
        return euclidean(adversarial - images)


@checked
@dataclass(frozen=True)
class RMSD(Threat):
    """The root mean square of the change over pixels and channels is at most epsilon [P5 2.3].

    The ball of `L2` in units that do not depend on the size of the image: its radius is epsilon
    sqrt(C H W).

    Args:
        epsilon: largest root mean square of the change, for images in [0, 1]; the papers' 15 is 15
            / 255 here.
        clip: whether images must stay in [0, 1].
    """

    epsilon: NonNegative = 15 / 255
    clip: bool = True
    norm = "rmsd"

    def _l2(self, images: Tensor) -> L2:
        return L2(self.epsilon * math.sqrt(images.shape[1:].numel()), self.clip)

    def random_start(self, images: Tensor, rng: Rng) -> Tensor:
        return self._l2(images).random_start(images, rng)

    def project(self, adversarial: Tensor, images: Tensor) -> Tensor:
        return self._l2(images).project(adversarial, images)

    def distance(self, adversarial: Tensor, images: Tensor) -> Tensor:
        return euclidean(adversarial - images) / math.sqrt(images.shape[1:].numel())


#: Balls that a norm and a radius describe.
_PLAIN = (Linf, L2, RMSD)
#: How far the projection of an image that is inside may move a pixel: by rounding.
STILL = 1e-5


def described(threat: Threat) -> dict[str, Any]:
    """Norm and radius of a threat; of any but `Linf`, `L2` and `RMSD` its ``ball``, too, in words:
    one that leaves some pixels alone, say, is not the ball that norm and radius describe.
    """
    about = {"norm": threat.norm, "epsilon": threat.epsilon}
    if type(threat) in _PLAIN:
        return about
    name = repr(threat) if is_dataclass(threat) else type(threat).__name__
    return {**about, "ball": " ".join(name.split())}


def euclidean(change: Tensor) -> Tensor:
    """(B,): Euclidean norms of changes (B, C, H, W).

    The squares are added up in float64: in float32 the norm of 3 x 224 x 224 equal changes is off
    by 6e-5 of its value, enough to leave the ball.
    """
    return torch.linalg.vector_norm(change.flatten(1), dim=1, dtype=torch.float64).to(change.dtype)


def into_ball(threat: Threat, adversarial: Tensor, images: Tensor) -> Tensor:
    """(B, C, H, W): images outside the ball are projected; those inside come back bit for bit.

    Attacks that look for the nearest adversarial image, and have no radius of their own, end here.
    Such an image may touch the boundary of its class, and projection rounds.
    """
    held = inside(threat, adversarial, images)
    return torch.where(per_image(held), adversarial, threat.project(adversarial, images))


def inside(threat: Threat, adversarial: Tensor, images: Tensor, slack: float = 0.0) -> Tensor:
    """(B,): which images lie in the ball, within epsilon and ``slack`` more, and where the threat's
    own projection leaves them.
    """
    near = threat.distance(adversarial, images) <= threat.epsilon + slack
    return near & kept(threat, adversarial, images)


def kept(threat: Threat, adversarial: Tensor, images: Tensor) -> Tensor:
    """(B,): which images the threat's own projection leaves where they are.

    It is the bound of a ball that is more than a radius, as one that leaves some pixels alone:
    attacks that step to the nearest boundary know the norm alone. Of `Linf`, `L2` and `RMSD` the
    distance says all, and nothing is computed.
    """
    if type(threat) in _PLAIN:
        return torch.ones(len(images), dtype=torch.bool, device=images.device)
    moved = (threat.project(adversarial.clone(), images) - adversarial).abs()
    return ~(moved.flatten(1).amax(dim=1) > STILL)
