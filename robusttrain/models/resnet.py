"""Residual networks for small images: 3x3 stem, no max pooling."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from robusttrain.core.checked import Count, checked
from robusttrain.core.errors import OptionError
from robusttrain.models.normalize import Normalize

# These constants are of no data set. They bring natural images in [0, 1] to about zero mean and
# unit variance (CIFAR-10's own are 0.47 and 0.25), and no figure depends on statistics of a wrong
# split.
MEAN, STD = 0.5, 0.25


class BasicBlock(nn.Module):
    """Two 3x3 convolutions beside a shortcut (He et al. 2016, section 3.3, "projection" shortcuts).

    Args:
        in_channels: channels of the input.
        channels: channels of the output.
        stride: of the first convolution and of the shortcut.
    """

    def __init__(self, in_channels: int, channels: int, stride: int = 1) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, channels, 3, stride=stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.relu = nn.ReLU(inplace=True)
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or in_channels != channels:
            self.shortcut = nn.Sequential(
                nn.Conv2d(in_channels, channels, 1, stride=stride, bias=False),
                nn.BatchNorm2d(channels),
            )

    def forward(self, x: Tensor) -> Tensor:
        """(B, in_channels, H, W) to (B, channels, H / stride, W / stride)."""
        residual = self.bn2(self.conv2(self.relu(self.bn1(self.conv1(x)))))
        return self.relu(residual + self.shortcut(x))


@checked
class CifarResNet(nn.Module):
    """ResNet of basic blocks for images of about 32 x 32 pixels; the default is ResNet-18 (11.2 M
    parameters).

    Each stage after the first halves height and width. A global average makes any image size work
    (``image_size`` is None). Widths (32, 64, 128) with one block a stage give 0.31 M parameters.

    Args:
        num_classes: number of logits K.
        in_channels: channels C of the images.
        widths: channels of each stage.
        blocks: basic blocks in each stage.
        stem_stride: of the first convolution. 1 is a 3x3 kernel on all pixels; s > 1 a kernel of 2s
            that divides height and width by s, so that a pass takes about 1 / s^2 of the time.
        mean: one value a channel, subtracted from images in [0, 1]; None means 0.5 for each.
        std: one value a channel, divided by; None means 0.25 for each.
    """

    image_size: int | None = None

    def __init__(
        self,
        num_classes: Count = 10,
        in_channels: Count = 3,
        widths: Sequence[int] = (64, 128, 256, 512),
        blocks: Count = 2,
        stem_stride: Count = 1,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
    ) -> None:
        super().__init__()
        if not widths or min(widths) < 1:
            raise OptionError(
                "widths", list(widths), "needs at least one stage, each of at least 1 channel"
            )
        for option, values in (("mean", mean), ("std", std)):
            if values is not None and len(values) != in_channels:
                raise OptionError(
                    option, list(values), f"needs one value for each of the {in_channels} channels"
                )
        self.num_classes, self.in_channels = num_classes, in_channels

        self.normalize = Normalize(
            [MEAN] * in_channels if mean is None else mean,
            [STD] * in_channels if std is None else std,
        )
        self.stem = nn.Sequential(
            _stem(in_channels, widths[0], stem_stride),
            nn.BatchNorm2d(widths[0]),
            nn.ReLU(inplace=True),
        )
        stages: list[nn.Module] = []
        channels = widths[0]
        for stage, width in enumerate(widths):
            layers: list[nn.Module] = []
            for block in range(blocks):
                layers.append(
                    BasicBlock(channels, width, stride=2 if stage > 0 and block == 0 else 1)
                )
                channels = width
            stages.append(nn.Sequential(*layers))
        self.stages = nn.Sequential(*stages)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.classifier = nn.Linear(channels, num_classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):  # He et al. 2015: keeps the variance through ReLUs
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, images: Tensor) -> Tensor:
        """Images (B, C, H, W) in [0, 1] to logits (B, K)."""
        features = self.stages(self.stem(self.normalize(images)))
        return self.classifier(self.pool(features).flatten(1))


def _stem(in_channels: int, channels: int, stride: int) -> nn.Conv2d:
    """Images (B, C, H, W) to (B, channels, H / stride, W / stride)."""
    kernel = 3 if stride == 1 else 2 * stride
    padding = 1 if stride == 1 else stride // 2
    return nn.Conv2d(in_channels, channels, kernel, stride=stride, padding=padding, bias=False)
