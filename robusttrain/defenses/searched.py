"""What defenses do that search on a model, whoever calls them."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from robusttrain.attacks.algorithms.projected_gradient import ProjectedGradient
from robusttrain.core.rng import Rng
from robusttrain.models.stepwise import differentiated_as


def searched(attack: ProjectedGradient, model: nn.Module, images: Tensor, rng: Rng) -> Tensor:
    """Where ``attack`` arrives on ``model``, from images (B, C, H, W); in derivative the identity.

    Args:
        attack: the search; it gets no labels, since a defense has none.
        model: a `Queried`.
        images: pixel values in [0, 1].
        rng: streams of the images, (B,).
    """
    # g differentiates a model, so g must work where its caller has switched gradients off, in
    # Lightning's inference mode, and in float32 under a caller's autocast.
    with (
        torch.inference_mode(False),
        torch.enable_grad(),
        torch.autocast(images.device.type, enabled=False),
    ):
        start = images.detach().float().clone(memory_format=torch.channels_last)
        arrived = attack.run(model, start, None, rng)  # type: ignore[arg-type]
    # Exactly g(x) in value; the identity in derivative.
    return differentiated_as(arrived, images)
