"""Fully connected networks, which appendix B of Wu et al. 2018 attacks; fast on any machine."""

from __future__ import annotations

from torch import Tensor, nn

from robusttrain.core.checked import Count, Whole, checked


@checked
class MLP(nn.Module):
    """``depth`` hidden layers of ``width`` units with ReLU, then a linear layer [P3 appendix B:
    784-500-500-10].

    Weights of hidden layers start as He et al. 2015 draw them: from torch's own start, nine hidden
    layers learn nothing. Those of the last layer start small, with standard deviation 0.01.

    Args:
        num_classes: number of logits K.
        in_channels: channels C of the images.
        image_size: height and width of the images in pixels.
        depth: D, the number of hidden layers; 0 gives a linear model.
        width: units of each hidden layer.
    """

    def __init__(
        self,
        num_classes: int = 10,
        in_channels: int = 3,
        image_size: int = 32,
        depth: Whole = 2,
        width: Count = 500,
    ) -> None:
        super().__init__()
        self.num_classes, self.in_channels, self.image_size = num_classes, in_channels, image_size
        sizes = [in_channels * image_size**2, *[width] * depth]
        hidden = [
            part
            for each in zip(sizes, sizes[1:], strict=False)
            for part in (nn.Linear(*each), nn.ReLU())
        ]
        last = nn.Linear(sizes[-1], num_classes)
        self.layers = nn.Sequential(nn.Flatten(), *hidden, last)
        for layer in self.layers:
            if isinstance(layer, nn.Linear):
                nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
                nn.init.zeros_(layer.bias)
        nn.init.normal_(last.weight, std=0.01)

    def forward(self, images: Tensor) -> Tensor:
        """Images (B, C, image_size, image_size) in [0, 1] to logits (B, K)."""
        logits: Tensor = self.layers(images - 0.5)
        return logits
