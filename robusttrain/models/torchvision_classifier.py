"""Any image classifier of torchvision, with its own normalisation inside."""

from __future__ import annotations

import difflib
import inspect
import logging
from typing import Any

import torch
import torchvision
from torch import Tensor, nn

from robusttrain.core.checked import Count, checked
from robusttrain.core.errors import OptionError, UserError, first_line, one_of
from robusttrain.core.preparation import Preparation, preparation_as
from robusttrain.models.normalize import Normalize

_log = logging.getLogger(__name__)


@checked
class TorchvisionClassifier(nn.Module):
    """A torchvision model that takes images in [0, 1].

    Mean, std and input size are those of the weights' own metadata (``weights.transforms()``);
    without weights, those of the model's default ones. Images are not resized: convolutional
    networks take any size, vision transformers only the size they were built for.

    Args:
        name: torchvision's name (``resnet18``, ``vit_b_16``).
        num_classes: number of logits K; with weights for another K, the last layer is new and
            untrained.
        weights: torchvision's name of weights to download (``DEFAULT``, ``IMAGENET1K_V1``); None
            for none.
        image_size: height and width of the images in pixels; None takes the weights' own.
        in_channels: channels C of the images; where it is not 3, the first layer's weights become
            their average over colours, with an equal response to grey images.

    Attributes:
        image_size: the given size, or the weights' own; None where neither is known.
        pretrained_classes: classes that the downloaded weights are for; None without them.
        pretrained_size: height and width of the images that they are for; None without them.
        pretrained_on: how torchvision prepares pictures for them; None without them.
    """

    def __init__(
        self,
        name: str,
        num_classes: Count = 10,
        weights: str | None = None,
        image_size: Count | None = None,
        in_channels: Count = 3,
    ) -> None:
        super().__init__()
        self.name, self.num_classes, self.in_channels = name, num_classes, in_channels
        builder, choices = _builder(name)
        chosen = None
        if weights is not None:
            if weights not in (*choices, "DEFAULT"):
                one_of("weights", weights, ("DEFAULT", *choices))
            chosen = choices[weights] if weights in choices else _default(choices)
        metadata = chosen or _default(choices)
        self.network = _network(name, builder, num_classes, chosen, image_size)
        if in_channels != 3:
            _take_channels(self.network, in_channels)
        mean, std, size, prepared = _preprocessing(metadata)
        if mean is None or std is None:
            _log.info("torchvision has no mean and std for %s: images are not normalised", name)
            mean, std = [0.0], [1.0]
        # The constants of RGB say nothing about other channels, their average does
        if len(mean) != in_channels:
            mean, std = [sum(mean) / len(mean)] * in_channels, [sum(std) / len(std)] * in_channels
        self.normalize = Normalize(mean, std)
        if chosen is not None:
            self.normalize.take(mean, std)  # a checkpoint holds them: it names no weights
        self.image_size = size if image_size is None else image_size
        self.pretrained_classes = len(chosen.meta["categories"]) if chosen is not None else None
        self.pretrained_size = size if chosen is not None else None
        self.pretrained_on = prepared if chosen is not None else None

    def forward(self, images: Tensor) -> Any:
        """Images (B, C, image_size, image_size) in [0, 1] to logits (B, K)."""
        return self.network(self.normalize(images))

    def no_weight_decay(self) -> set[str]:
        """The names of parameters that are positions and tokens of a transformer."""
        undecayed = ("class_token", "pos_embedding", "relative_position_bias_table")
        return {name for name, _ in self.named_parameters() if name.endswith(undecayed)}


def _builder(name: str) -> tuple[Any, dict[str, Any]]:
    """What makes a classifier of that name, and the weights that torchvision has for it."""
    names = torchvision.models.list_models(torchvision.models)
    if name not in names:
        near = difflib.get_close_matches(name, names, n=3)
        hint = "the nearest are " + ", ".join(near) if near else f"there are {', '.join(names)}"
        raise OptionError("name", name, f"torchvision has no such classifier; {hint}")
    weights = torchvision.models.get_model_weights(name)
    return torchvision.models.get_model_builder(name), dict(weights.__members__)


def _default(choices: dict[str, Any]) -> Any:
    """The weights that torchvision itself would take; None where there are none."""
    enum = next((type(each) for each in choices.values()), None)
    return None if enum is None else getattr(enum, "DEFAULT", None)


def _preprocessing(
    weights: Any,
) -> tuple[list[float] | None, list[float] | None, int | None, Preparation | None]:
    """Mean, std, image size and preparation of pictures of weights, as far as they say."""
    if weights is None:
        return None, None, None, None
    transforms = weights.transforms()
    mean, std = (getattr(transforms, name, None) for name in ("mean", "std"))
    size = getattr(transforms, "crop_size", None)
    resize, by = (getattr(transforms, name, None) for name in ("resize_size", "interpolation"))
    prepared = preparation_as(size[-1], resize[-1], by.value) if size and resize and by else None
    return (
        None if mean is None else [float(value) for value in mean],
        None if std is None else [float(value) for value in std],
        int(size[-1]) if size else None,
        prepared,
    )


def _network(name: str, builder: Any, classes: int, weights: Any, size: int | None) -> nn.Module:
    """torchvision's model, with errors that a user can mend."""
    parameters = inspect.signature(builder).parameters
    arguments: dict[str, Any] = {}
    if size is not None and name.startswith("vit_"):  # built for one size
        arguments["image_size"] = size
    if "aux_logits" in parameters or name in ("googlenet", "inception_v3"):
        arguments["init_weights"] = True  # as before torchvision 0.13 warned of the question
    network: nn.Module = builder(num_classes=classes, **arguments)
    if weights is None:
        return network
    try:
        state = weights.get_state_dict(progress=False, check_hash=True)
    except Exception as error:  # a failed download comes in a dozen classes
        raise UserError(
            f"weights = {weights.name!r}: the weights of {name} could not be had"
            f" ({first_line(error)}): check the network, or leave weights out"
        ) from error
    own = network.state_dict()
    fitting = {
        key: value for key, value in state.items() if key in own and own[key].shape == value.shape
    }
    # Counts of batches, which older files lack, are no weights.
    missing = {key for key in own if key not in fitting and "num_batches_tracked" not in key}
    if missing and classes != (theirs := len(weights.meta["categories"])):
        # The last layers alone depend on the number of classes: these are new.
        with torch.device("meta"):
            other = builder(num_classes=theirs, **arguments).state_dict()
        missing = {key for key in missing if other[key].shape == own[key].shape}
    if missing:
        raise UserError(
            f"weights = {weights.name!r}: does not fit {name} at this size ({min(missing)}): leave"
            " out image_size"
        )
    network.load_state_dict(fitting, strict=False)
    return network


def _take_channels(network: nn.Module, channels: int) -> None:
    """Exchange the first convolution for one that takes other channels."""
    for parent in network.modules():
        for name, layer in parent.named_children():
            if isinstance(layer, nn.Conv2d) and layer.in_channels == 3 and layer.groups == 1:
                new = nn.Conv2d(
                    channels,
                    layer.out_channels,
                    layer.kernel_size,  # type: ignore[arg-type]
                    layer.stride,  # type: ignore[arg-type]
                    layer.padding,  # type: ignore[arg-type]
                    layer.dilation,  # type: ignore[arg-type]
                    bias=layer.bias is not None,
                )
                with torch.no_grad():
                    grey = layer.weight.sum(1, keepdim=True) / channels
                    new.weight.copy_(grey.expand_as(new.weight))
                    if layer.bias is not None and new.bias is not None:
                        new.bias.copy_(layer.bias)
                setattr(parent, name, new)
                return
    raise OptionError("in_channels", channels, "this network takes three channels and no others")
