"""The small VGG that the adversarial transformation uses as its fixed model ``f_b``."""

from __future__ import annotations

from torch import Tensor, nn

from robusttrain.core.checked import Count, checked
from robusttrain.core.errors import OptionError

# Output channels of each 3x3 convolution, in widths; None halves height and width.
LAYERS: tuple[int | None, ...] = (1, None, 2, None, 1, 1, None, 2, 2, None)
#: Width of the paper's network, and its hidden units in widths.
WIDTH, HIDDEN = 64, 8


@checked
class VGGSmall(nn.Module):
    """VGG with six 3x3 convolutions, batch norm and three linear layers (0.94 M parameters at 32 x
    32).

    Channels 64-M-128-M-64-64-M-128-128-M, then 512-512-classes. The layers stand at the positions
    of the authors' ``nn.Sequential``, so that their released file (keys ``features.N.*``,
    ``classifier.N.*``) loads strictly. There is no normalisation, since the authors' network takes
    images in [0, 1] directly.

    Source: the paper of the adversarial transformation (P1 in docs), ``f_b`` of its experiments.

    Args:
        num_classes: number of logits K.
        in_channels: channels C of the images.
        image_size: height and width of the images in pixels, a multiple of 16 (four poolings halve
            it).
        width: channels of the first convolution; all other layers keep their proportion to it.
    """

    def __init__(
        self,
        num_classes: Count = 10,
        in_channels: Count = 3,
        image_size: int = 32,
        width: Count = WIDTH,
    ) -> None:
        super().__init__()
        if image_size < 16 or image_size % 16:
            raise OptionError(
                "image_size",
                image_size,
                "must be a multiple of 16, as four poolings halve the image",
            )
        self.num_classes, self.in_channels, self.image_size = num_classes, in_channels, image_size

        features: list[nn.Module] = []
        channels = in_channels
        for layer in LAYERS:
            if layer is None:
                features.append(nn.MaxPool2d(2))
                continue
            wide = layer * width
            features += [
                nn.Conv2d(channels, wide, 3, padding=1),
                nn.BatchNorm2d(wide),
                nn.ReLU(inplace=True),
            ]
            channels = wide
        self.features = nn.Sequential(*features)
        hidden = HIDDEN * width
        self.classifier = nn.Sequential(
            nn.Dropout(),
            nn.Linear(channels * (image_size // 16) ** 2, hidden),
            nn.ReLU(inplace=True),
            nn.Dropout(),
            nn.Linear(hidden, hidden),
            nn.ReLU(inplace=True),
            nn.Linear(hidden, num_classes),
        )

    def forward(self, images: Tensor) -> Tensor:
        """Images (B, C, image_size, image_size) in [0, 1] to logits (B, K)."""
        return self.classifier(self.features(images).flatten(1))
