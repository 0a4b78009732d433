"""Every training objective on the pretend device, by Lightning's trainer."""

import pytest
import torch
from lightning import Waited, trainer
from pretend_device import DEVICE
from subjects import Reader, network, shortened
from torch import nn

from robusttrain.config import presets
from robusttrain.config.attacks import scenarios
from robusttrain.config.build import build, fit_to_data
from robusttrain.data import Digits
from robusttrain.data.base import Facts
from robusttrain.defenses import AdversarialTransform, GaussianNoise
from robusttrain.models import Autoencoder, CifarResNet, FullyConvolutional, NoiseNetwork, VGGSmall
from robusttrain.models.defended import DefendedClassifier
from robusttrain.running.f_b import _training
from robusttrain.training import *
from robusttrain.training.objectives import TrainingObjective
from robusttrain.training.callbacks import *

pytestmark = pytest.mark.filterwarnings("ignore")
def f_a(): 
    torch.manual_seed(0)
    return CifarResNet(num_classes=10, in_channels=1, widths=[4, 8], blocks=1)
class DigitsReader:
    def checkpoint(self, path, trust):
        torch.manual_seed(1)
        return DefendedClassifier(None, f_a()).eval()

def objective(name):
    node = _training(name)["training"]["objective"]
    if "models" in node.get("init_args", {}): node["init_args"]["models"] = ["a file"]
    return shortened(build(node, "training.objective", kind=TrainingObjective), 2).opened(DigitsReader())
NAMES = [n for n in presets.names("training") if n not in ("denoiser", "diffusion", "reparameterization")]
@pytest.mark.parametrize("name", NAMES)
def test_o(name):
    waited = Waited()
    module = RobustTraining(DefendedClassifier(GaussianNoise(0.1), f_a()), 10, objective(name))
    trainer([waited]).fit(module, Digits(batch_size=8))
    a, b = waited.batches[-2:]
    print("RES", name, sum(b.values()), b.told().replace("\n"," / "))
