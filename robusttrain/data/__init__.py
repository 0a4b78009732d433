"""Data: one LightningDataModule a file, and one way from the disk to the model for all of them.

A data module reads its images once, as uint8 tensors in memory (or, where they are too many,
decodes each batch when it is due), and hands them out as whole batches by indexing: nothing runs
Python for each image in memory. A batch becomes float32 in [0, 1], and is augmented, on the device.
Every image keeps its index in its split, from which all of its randomness derives, so neither batch
size nor order nor the number of processes changes what is done to it.

To add a data set, write a file with a subclass of ImageData that says three things:

- ``name`` and an ``__init__`` that spells out its arguments (the command line reads them and their
  docstring);
- ``facts()``: classes, channels and image size, without reading the images;
- ``_read(split)``: the images, labels and class names of "train" or "test", or a UserError that
  says what is missing (``missing_data``). Folders of image files go through ``ImageFiles``.

Then name it below and put a preset beside the others in configs/data/.
"""

from robusttrain.data.base import Batch, Facts, ImageData
from robusttrain.data.cifar10 import CIFAR10
from robusttrain.data.cifar100 import CIFAR100
from robusttrain.data.digits import Digits
from robusttrain.data.fashion_mnist import FashionMNIST
from robusttrain.data.imagefolder import ImageFolder
from robusttrain.data.imagenet import ImageNet
from robusttrain.data.tiny_imagenet import TinyImageNet

__all__ = [
    "CIFAR10",
    "CIFAR100",
    "Batch",
    "Digits",
    "Facts",
    "FashionMNIST",
    "ImageData",
    "ImageFolder",
    "ImageNet",
    "TinyImageNet",
]
