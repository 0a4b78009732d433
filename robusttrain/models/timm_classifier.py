"""Any image classifier of timm, with its own normalisation inside."""

from __future__ import annotations

import difflib
import math
from typing import Any

import timm
from torch import Tensor, nn

from robusttrain.core.checked import Count, checked
from robusttrain.core.errors import OptionError, UserError, at_least, first_line
from robusttrain.core.preparation import Preparation, preparation_as
from robusttrain.models.normalize import Normalize


@checked
class TimmClassifier(nn.Module):
    """A timm model that takes images in [0, 1].

    Mean, std and input size are those of the model's ``pretrained_cfg``. Images are not resized:
    convolutional networks take any size, vision transformers only the size they were built for.

    Args:
        name: timm's name, with or without a tag (``resnet18``,
            ``vit_tiny_patch16_224.augreg_in21k``).
        num_classes: number of logits K; with ``pretrained``, a K other than the file's gives a new,
            untrained head.
        pretrained: download timm's weights.
        image_size: height and width of the images in pixels; None takes the model's own
            (``pretrained_cfg``).
        in_channels: channels C of the images; timm sums or repeats the first layer's weights when
            it is not 3.

    Attributes:
        image_size: the given size, or the model's own.
        pretrained_classes: classes that the downloaded weights are for; None without
            ``pretrained``.
        pretrained_size: height and width of the images that they are for; None without.
        pretrained_on: how timm prepares pictures for them; None without, and where it squeezes
            pictures that are not square, or adds a border.
    """

    def __init__(
        self,
        name: str,
        num_classes: Count = 10,
        pretrained: bool = False,
        image_size: int | None = None,
        in_channels: Count = 3,
    ) -> None:
        super().__init__()
        if image_size is not None:
            at_least("image_size", image_size, 1)
        self.name, self.num_classes, self.in_channels = name, num_classes, in_channels
        self.network = _create(name, num_classes, pretrained, image_size, in_channels)

        config = timm.data.resolve_model_data_config(self.network)
        mean, std = list(config["mean"]), list(config["std"])
        # The constants of RGB say nothing about other channels, but their average does
        if len(mean) != in_channels:
            mean, std = [sum(mean) / len(mean)] * in_channels, [sum(std) / len(std)] * in_channels
        self.normalize = Normalize(mean, std)
        self.image_size = config["input_size"][-1] if image_size is None else image_size
        # timm silently replaces the head if the file has another number of classes.
        own: dict[str, Any] = getattr(self.network, "pretrained_cfg", {})
        self.pretrained_classes: int | None = own.get("num_classes") if pretrained else None
        size = own.get("input_size") if pretrained else None
        self.pretrained_size: int | None = size and size[-1]
        self.pretrained_on = timms_preparation(self.network) if pretrained else None

    def forward(self, images: Tensor) -> Tensor:
        """Images (B, C, image_size, image_size) in [0, 1] to logits (B, K)."""
        return self.network(self.normalize(images))

    def no_weight_decay(self) -> set[str]:
        """The names of parameters that timm's own training does not decay: positions and tokens of
        a vision transformer.
        """
        named = getattr(self.network, "no_weight_decay", set)  # timm's, on some of its networks
        return {f"network.{name}" for name in named()}


def timms_preparation(network: nn.Module) -> Preparation | None:
    """How timm's own evaluation prepares pictures for a network of its own
    (`timm.data.create_transform`); None where it squeezes them or adds a border.
    """
    config = timm.data.resolve_model_data_config(network)
    size = config["input_size"][-1]
    if config["crop_mode"] != "center":
        return None
    return preparation_as(size, math.floor(size / config["crop_pct"]), config["interpolation"])


def _create(
    name: str, num_classes: int, pretrained: bool, image_size: int | None, in_channels: int
) -> nn.Module:
    """timm.create_model with errors that a user can mend."""
    architecture = name.partition(".")[0]
    if not timm.is_model(name):
        near = difflib.get_close_matches(architecture, timm.list_models(), n=3)
        hint = "the nearest are " + ", ".join(near) if near else "timm.list_models() lists all"
        raise OptionError("name", name, f"timm has no such model; {hint}")
    try:
        config = timm.get_pretrained_cfg(name)
    except RuntimeError as error:
        tagged = timm.list_pretrained(f"{architecture}.*")
        near = difflib.get_close_matches(name, tagged, n=3) or tagged[:3]
        raise OptionError(
            "name", name, f"timm has no such tag; the nearest are {', '.join(near)}"
        ) from error

    # Only models built for one size (their configuration says so) know the argument img_size; the
    # others take any.
    sized: dict[str, Any] = (
        {"img_size": image_size}
        if image_size is not None and config and config.fixed_input_size
        else {}
    )
    try:
        return timm.create_model(
            name, pretrained=pretrained, num_classes=num_classes, in_chans=in_channels, **sized
        )
    except Exception as error:  # a failed download comes in a dozen classes of three libraries
        if not pretrained:
            raise
        raise UserError(
            f"pretrained = True: the weights of {name} could not be had ({first_line(error)}): "
            "check the network, or set pretrained to false"
        ) from error
