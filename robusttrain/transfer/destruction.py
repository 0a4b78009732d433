"""The destruction rate: the share of adversarial images that no longer fool a target once they are
turned, blurred, or saved as JPEG.

    R = sum_i C(X_i) (1 - C(X_i^adv)) C(T(X_i^adv)) / sum_i C(X_i) (1 - C(X_i^adv))

[P3 6.2, after Kurakin et al. 2016]: of the images that the target had right and that the attack
made wrong, the share that is right again after the transformation T. C(X) is 1 where the target
classifies X correctly, else 0; of a random target C is the mean over its draws.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

from torch import Tensor, nn

from robusttrain.core.rng import Rng
from robusttrain.evaluation.scoring import wilson
from robusttrain.transfer.estimates import Estimate
from robusttrain.transfer.predictions import answers, within_top
from robusttrain.transfer.transformations import Transformation


def destruction_rate(
    clean: Tensor, adversarial: Tensor, transformed: Tensor, transformed_clean: Tensor | None = None
) -> Estimate:
    """R, with Wilson's interval; NaN if no image fooled the target.

    Args:
        clean: (n,) C(X_i), whether (or in what share of draws) the target has the image right.
        adversarial: (n,) C(X_i^adv).
        transformed: (n,) C(T(X_i^adv)).
        transformed_clean: (n,) C(T(X_i)), to count only images that T alone leaves right. None, as
            in the paper, counts an image that T makes unrecognisable as one whose perturbation
            survived.
    """
    weight = clean.double() * (1 - adversarial.double())
    if transformed_clean is not None:
        weight = weight * transformed_clean.double()
    total = weight.sum().item()
    if not total:
        return Estimate(math.nan, math.nan, math.nan, 0)
    rate = min(1.0, ((weight * transformed.double()).sum() / total).item())
    # Images of a random target weigh less than one each: take Kish's effective sample size, which
    # is the plain count for weights of 0 and 1.
    effective = total**2 / weight.square().sum().item()
    low, high = wilson(rate, round(effective))
    return Estimate(rate, low, high, int((weight > 0).sum()))


def destruction_curve(
    target: nn.Module,
    images: Tensor,
    adversarial: Tensor,
    labels: Tensor,
    transformations: Mapping[float, Transformation],
    rng: Rng,
    draws: int = 1,
    batch: int = 32,
    keep_right: bool = False,
) -> list[tuple[float, Estimate]]:
    """(strength, R) for each transformation: one line of [P3 figure 4].

    Args:
        target: images to logits (B, K).
        images: (n, C, H, W), clean, pixel values in [0, 1].
        adversarial: (n, C, H, W).
        labels: (n,) true classes.
        transformations: by strength, the number on the x-axis.
        rng: streams of the images, (n,).
        draws: draws of a random target, other ones for each of the four answers on an image.
        batch: images at a time.
        keep_right: whether to count only images whose clean version stays right when transformed.
    """

    def correct(shown: Tensor, purpose: str) -> Tensor:
        return within_top(
            answers(target, shown, rng.fold(purpose), draws, top=1, batch=batch), labels
        )

    before, fooled = correct(images, "clean"), correct(adversarial, "adversarial")
    curve = []
    for strength, transformation in transformations.items():
        after = correct(transformation(adversarial, rng), "transformed")
        alone = correct(transformation(images, rng), "transformed clean") if keep_right else None
        curve.append((strength, destruction_rate(before, fooled, after, alone)))
    return curve
