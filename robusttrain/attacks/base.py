"""The noun ``Attack`` and what every attack promises."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import fields, is_dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor, nn

from robusttrain.attacks.asking import Queried
from robusttrain.attacks.parts.threats import Threat
from robusttrain.attacks.prepare import prepared
from robusttrain.core.errors import OptionError, UserError
from robusttrain.core.rng import Rng


class Cost(NamedTuple):
    """What an attack asks of its source, per image.

    Args:
        gradients: gradient evaluations, each one forward and one backward pass.
        queries: forward passes alone.
    """

    gradients: int
    queries: int


def check_images(images: Tensor) -> None:
    """Raise UserError unless images are a float tensor (B, C, H, W) with values in [0, 1]."""
    if images.dim() != 4 or not images.is_floating_point():
        raise UserError(
            f"images: expected floats (B, C, H, W), got {images.dtype} {tuple(images.shape)}"
        )
    if not len(images):
        return
    low, high = torch.aminmax(images)
    if not (low >= 0 and high <= 1):
        raise UserError(
            f"images: values must lie in [0, 1], got [{low.item():.3g}, {high.item():.3g}]; "
            "normalise inside the model, and divide 8-bit images by 255"
        )


class Attack(ABC):
    """Finds adversarial images. Subclasses are frozen dataclasses that write ``run`` and
    ``cost``.
    """

    threat: Threat
    #: Whether its queries are to the g behind the source, instead of to the source.
    asks_g = False

    @property
    def members(self) -> tuple[Attack, ...]:
        """The attacks inside a wrapper, in their order and in the wrapper's threat; none for all
        others.
        """
        return ()

    def within(self, threat: Threat) -> Attack:
        """The same attack in another threat.

        Raises:
            OptionError: the attack does not know that threat, or cannot be moved out of its own.
        """
        if not is_dataclass(self) or all(each.name != "threat" for each in fields(self)):
            raise OptionError(
                "threat",
                threat,
                f"cannot be given to {type(self).__name__}, which has one of its own",
            )
        moved: Attack = replace(self, threat=threat)  # type: ignore[assignment]
        return moved

    @property
    def rounds_well(self) -> bool:
        """Whether gradients computed in bfloat16 serve it as well as exact ones.

        Steps along the sign of a gradient do not feel its rounding. Attacks that compare losses or
        distances do, and so this is False unless an attack says otherwise.
        """
        return False

    def __call__(
        self, source: nn.Module, images: Tensor, labels: Tensor, rng: Rng | None = None
    ) -> Tensor:
        """Adversarial images inside the threat.

        Args:
            source: what the attacker differentiates: images in [0, 1] to logits (B, K). Any
                ``nn.Module``; it is put into evaluation mode meanwhile and left as it was. One that
                draws from a global generator is asked image by image (see `Queried`).
            images: (B, C, H, W), pixel values in [0, 1].
            labels: (B,) int64, true classes.
            rng: streams of the images, (B,); None takes keys from torch's global generator.

        Returns:
            (B, C, H, W), detached.

        Raises:
            UserError: images outside [0, 1] or of another shape, labels of another length, no
                gradient to follow.
        """
        check_images(images)
        if labels.shape != images.shape[:1]:
            raise UserError(
                f"labels: expected one per image, ({len(images)},), got {tuple(labels.shape)}"
            )
        rng = Rng.from_global(len(images), images.device) if rng is None else rng
        source = Queried.of(source)
        with prepared(source):
            # Inference tensors can never enter autograd; a clone made outside inference mode can.
            images, labels = images.clone(), labels.clone()
            return self.run(source, images, labels, rng).detach()

    @abstractmethod
    def run(self, source: nn.Module, images: Tensor, labels: Tensor, rng: Rng) -> Tensor:
        """The algorithm, on a prepared source; arguments as for ``__call__``."""

    def check(self, source: nn.Module) -> None:  # noqa: B027 - most attacks take any source
        """Raise UserError if ``source`` lacks what this attack needs; asked before anything
        runs.
        """

    def goals(self, source: nn.Module, images: Tensor, labels: Tensor, rng: Rng) -> Tensor | None:
        """The class (B,) that a targeted attack with one target strives for in each image, else
        None.

        Arguments as for ``__call__``, with the same streams: the answer is what that call strives
        for.
        """
        objective = getattr(self, "objective", None)
        if objective is None or objective.target is None or getattr(self, "targets", None):
            return None
        with prepared(source):
            found: Tensor = objective.aim(source, images.clone(), labels.clone(), rng.fold("aim"))
        return found[:, -1] if found.dim() > 1 else found

    @abstractmethod
    def cost(self) -> Cost:
        """What ``run`` asks of the source, per image."""
