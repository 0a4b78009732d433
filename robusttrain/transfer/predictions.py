"""A target's answers on images: the plain data behind the measures of transfer.

``classes`` is (n, D, k) int64: for each of n images and D draws of the target's randomness (1 if it
has none), the target's k likeliest classes, likeliest first, as `top_classes` gives them. Nothing
else of the logits is stored, so a study's answers stay small. If the target is random, clean images
that choose a denominator and adversarial images that are scored need different streams: choosing
and scoring by the same draws would report the luck of the draw.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from robusttrain.core.errors import UserError
from robusttrain.core.rng import Rng
from robusttrain.evaluation.scoring import top_classes


def answers(
    model: nn.Module, images: Tensor, rng: Rng, draws: int = 1, top: int = 5, batch: int = 32
) -> Tensor:
    """``classes`` of all images, (n, draws, min(top, K)), some images at a time.

    Args:
        model: images to logits (B, K).
        images: (n, C, H, W), pixel values in [0, 1].
        rng: streams of the images, (n,); draw k takes ``rng.fold(k)``.
        draws: draws of the model's randomness; 1 for a deterministic model.
        top: how many classes.
        batch: images at a time.
    """
    parts = [
        top_classes(model, images[start : start + batch], rng[start : start + batch], draws, top)
        for start in range(0, len(images), batch)
    ]
    return torch.cat(parts) if parts else torch.zeros(0, draws, top, dtype=torch.int64)


def within_top(classes: Tensor, wanted: Tensor, top: int = 1) -> Tensor:
    """Share of draws in which the class ``wanted`` (n,) is among the ``top`` likeliest: (n,)
    float64.

    Raises:
        UserError: ``classes`` holds fewer than ``top`` classes, or another number of images.
    """
    if top > classes.shape[2]:
        raise UserError(f"top {top}: only the {classes.shape[2]} likeliest classes were kept")
    if len(classes) != len(wanted):
        raise UserError(
            f"answers on {len(classes)} images, but classes of {len(wanted)}: give the same images"
        )
    return (classes[:, :, :top] == wanted[:, None, None]).any(dim=2).double().mean(dim=1)


@dataclass(frozen=True)
class Denominator:
    """The images that a rate is over, for each target.

    Args:
        words: which images count, to end "of 431 images ...".
        among: target to (n,) bool.
    """

    words: str
    among: Mapping[str, Tensor]


def right(classes: Tensor, labels: Tensor) -> Tensor:
    """(n,) bool: images that the target has right in most draws."""
    return within_top(classes, labels) > 0.5


def every_model_right(clean: Mapping[str, Tensor], labels: Tensor) -> Denominator:
    """The papers' choice: images that all models classify correctly before the attack [P3 4, P5
    2.2].

    Args:
        clean: model to ``classes`` of the clean images.
        labels: (n,) true classes.

    Raises:
        UserError: there is no such image.
    """
    common = torch.stack([right(classes, labels) for classes in clean.values()]).all(dim=0)
    if not common.any():
        raise UserError(
            f"no image of {len(labels)} is classified correctly by all of {', '.join(clean)}: "
            "take more images, or models of the same classes"
        )
    return Denominator("that every model had right before", dict.fromkeys(clean, common))


def target_right(clean: Mapping[str, Tensor], labels: Tensor) -> Denominator:
    """For each target, the images that it had right before the attack itself; arguments as for
    `every_model_right`.
    """
    among = {name: right(classes, labels) for name, classes in clean.items()}
    return Denominator("that the target had right before", among)
