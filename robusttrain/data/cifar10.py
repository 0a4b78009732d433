"""CIFAR-10: 60,000 photographs of 32 x 32 pixels in 10 classes (Krizhevsky, 2009)."""

from __future__ import annotations

import torchvision.datasets
from torch import Tensor

from robusttrain.data import cifar
from robusttrain.data.base import Facts, ImageData, SplitName
from robusttrain.data.cifar import Layout

_LAYOUT = Layout(
    title="CIFAR-10",
    classes=10,
    folder="cifar-10-batches-bin",
    files={
        "train": tuple(f"data_batch_{number}.bin" for number in range(1, 6)),
        "test": ("test_batch.bin",),
    },
    class_names="batches.meta.txt",
    label_bytes=1,
    python=torchvision.datasets.CIFAR10,
)


class CIFAR10(ImageData):
    """CIFAR-10, 50,000 images to train and 10,000 to test, from its Python or its binary version.

    Args:
        root: folder with ``cifar-10-batches-py/`` or ``cifar-10-batches-bin/``, or a folder to
            download to.
        batch_size: images of a batch, in each process.
        validation: share of the train split that is held out for validation.
        crop: width in pixels of the border of zeros for random crops in training; 0 for none.
        flip: whether to mirror half of the images in training.
        download: whether to download the Python version if there is none of both.
        seed: seed of the validation split, of the order and of the augmentation.
        workers: processes that load batches; 0 loads them in the main process.
    """

    name = "cifar10"

    def __init__(
        self,
        root: str = "data/cifar10",
        batch_size: int = 128,
        validation: float = 0.1,
        crop: int = 4,
        flip: bool = True,
        download: bool = True,
        seed: int = 0,
        workers: int = 0,
    ) -> None:
        super().__init__(root, batch_size, validation, crop, flip, seed, workers)
        self.download = download

    def prepare_data(self) -> None:
        """Download, if wanted."""
        if self.download:
            cifar.download(self.root, _LAYOUT)

    def facts(self) -> Facts:
        """10 classes of 32 x 32 pixels in colour."""
        if not self.download:
            cifar.check(self.root, _LAYOUT)
        return Facts(10, 3, 32)

    def _read(self, split: SplitName) -> tuple[Tensor, Tensor, list[str]]:
        return cifar.read(self.root, _LAYOUT, split)
