"""Data: one LightningDataModule in each file, and one way from the disk to the model for all.

A data module reads its images once, as uint8 tensors in memory. If there are too many images, it
decodes each batch when the batch is due. It hands images out as whole batches by indexing, so no
Python code runs for each image in memory. A batch becomes float32 in [0, 1], and is augmented, on
the device. Every image keeps its index in its split, from which all of its randomness derives. So
batch size, order and the number of processes do not change an image.

To add a data set, write a file with a subclass of ImageData that has three things:

- ``name`` and an ``__init__`` that spells out its arguments (the command line reads them and their
  docstring);
- ``facts()``: classes, channels and image size, without reading the images;
- ``_read(split)``: the images, labels and class names of "train" or "test", or a UserError that
  says what is missing (``missing_data``). ``ImageFiles`` reads folders of image files.

Then name the class below, and put a preset beside the others in configs/data/.
"""

from robusttrain.data.base import Batch, Facts, ImageData
from robusttrain.data.cifar10 import CIFAR10
from robusttrain.data.cifar100 import CIFAR100
from robusttrain.data.digits import Digits
from robusttrain.data.fashion_mnist import FashionMNIST
from robusttrain.data.imagefolder import ImageFolder
from robusttrain.data.imagenet import ImageNet
from robusttrain.data.table import ImageTable
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
    "ImageTable",
    "TinyImageNet",
]
