"""The 1,797 handwritten digits that come with scikit-learn: real images that need no download."""

from __future__ import annotations

from functools import cache
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from robusttrain.core.errors import at_least
from robusttrain.data.base import Facts, ImageData, SplitName
from robusttrain.data.batches import seeded_order

_TEST_IMAGES = 297


class Digits(ImageData):
    """Grey digits of 8 x 8 pixels, enlarged; always the same 1,500 to train and 297 to test.

    Args:
        batch_size: images of a batch, in each process.
        validation: share of the train split that is held out for validation.
        crop: width in pixels of the border of zeros for random crops in training; 0 for none.
        image_size: height and width in pixels, at least 8, reached by bilinear interpolation.
        seed: seed of the validation split, of the order and of the augmentation.
        workers: processes that load batches; 0 loads them in the main process.
    """

    name = "digits"

    def __init__(
        self,
        batch_size: int = 128,
        validation: float = 0.1,
        crop: int = 1,
        image_size: int = 16,
        seed: int = 0,
        workers: int = 0,
    ) -> None:
        super().__init__("", batch_size, validation, crop, flip=False, seed=seed, workers=workers)
        at_least("image_size", image_size, 8)
        self.image_size = image_size

    def facts(self) -> Facts:
        """Ten grey digits."""
        return Facts(10, 1, self.image_size)

    def _read(self, split: SplitName) -> tuple[Tensor, Tensor, list[str]]:
        pixels, digits = _stored()
        order = seeded_order(len(digits), 0, "digits")
        chosen = (order[:_TEST_IMAGES] if split == "test" else order[_TEST_IMAGES:]).sort().values
        images = pixels.float()[chosen, None] * (255 / 16)
        images = F.interpolate(
            images, size=(self.image_size, self.image_size), mode="bilinear", align_corners=False
        )
        labels = digits.long()[chosen]
        return images.round_().to(torch.uint8), labels, [str(digit) for digit in range(10)]


@cache  # both splits are read of it, and by studies again and again
def _stored() -> tuple[Tensor, Tensor]:
    """Pixels (1797, 8, 8) in [0, 16] and labels (1797,): what `sklearn.datasets.load_digits` gives,
    from the file that it reads, because importing scikit-learn takes a second.
    """
    spec = find_spec("sklearn")
    path = Path(str(spec and spec.origin)).parent / "datasets" / "data" / "digits.csv.gz"
    if path.is_file():
        rows = torch.from_numpy(np.loadtxt(path, delimiter=","))
        return rows[:, :-1].reshape(-1, 8, 8), rows[:, -1]
    from sklearn.datasets import load_digits

    digits = load_digits()
    return torch.from_numpy(digits.images), torch.from_numpy(digits.target)
