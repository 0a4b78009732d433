"""Classifiers: plain modules from images to logits.

Every classifier takes images (B, C, H, W) in [0, 1] and returns logits (B, K). Its normalisation is
its first layer (`Normalize`), so attacks, budgets and pictures are all about the same images.

- `VGGSmall`: the paper's ``f_b``, small and fast; loads the file its authors released.
- `CifarResNet`: ResNets with a 3x3 stem; the default is ResNet-18.
- `TimmClassifier`: anything from timm, by name.
- `TorchvisionClassifier`: anything from torchvision, by name; `RobustBenchClassifier`: from
  RobustBench's zoo.
- `EfficientNetLite`: three ImageNet classifiers whose trained weights come as packages.
- `MLP`: fully connected layers, for the smallest experiments.
- `FullyConvolutional`: images to images, for the reparameterization attack.
- `Autoencoder`: images to images, for the defense `Denoiser`; `NoiseNetwork` and `DiffusersUNet`
  predict the noise in images, for the defense `Diffusion`.
- `fast_copy`: an evaluation-only copy with batch norm folded, for attacks; `fast_twin`: such a copy
  that follows a model in training.

To add a model, write one file with one ``nn.Module``. Take the arguments
``num_classes: int = 10``, ``in_channels: int = 3`` and ``image_size: int = 32`` where they matter:
the data set replaces values that are left at these defaults. Keep all three as attributes
(``image_size`` is None where any size works), raise `OptionError` for values that cannot work, and
add a preset ``configs/model/NAME.yaml`` with the class path. Nothing has to be registered: a class
of your own package works by its class path. `robusttrain.storage.weights` reads and writes the
weights. A model that brings trained weights gives their number of classes as
``pretrained_classes``, and ``evaluate.py`` then asks for no ``--weights``; as ``pretrained_size``
the height and width of images that they are for, and images of another size are warned of; as
``pretrained_on`` the `robusttrain.core.preparation.Preparation` of the pictures that they are
evaluated on, and pictures that are prepared otherwise are warned of.
"""

from robusttrain.models.autoencoder import Autoencoder
from robusttrain.models.diffusers_unet import DiffusersUNet
from robusttrain.models.efficientnet_lite import EfficientNetLite
from robusttrain.models.fast import FastModel, fast_copy
from robusttrain.models.fully_convolutional import FullyConvolutional
from robusttrain.models.mlp import MLP
from robusttrain.models.noise_predictor import NoiseNetwork, NoisePredictor
from robusttrain.models.normalize import Normalize
from robusttrain.models.resnet import BasicBlock, CifarResNet
from robusttrain.models.robustbench_classifier import RobustBenchClassifier
from robusttrain.models.timm_classifier import TimmClassifier
from robusttrain.models.torchvision_classifier import TorchvisionClassifier
from robusttrain.models.twin import fast_twin
from robusttrain.models.vgg_small import VGGSmall

__all__ = [
    "Autoencoder",
    "BasicBlock",
    "CifarResNet",
    "DiffusersUNet",
    "EfficientNetLite",
    "FastModel",
    "FullyConvolutional",
    "MLP",
    "NoiseNetwork",
    "NoisePredictor",
    "Normalize",
    "RobustBenchClassifier",
    "TimmClassifier",
    "TorchvisionClassifier",
    "VGGSmall",
    "fast_copy",
    "fast_twin",
]
