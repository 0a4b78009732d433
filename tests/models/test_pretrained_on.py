"""What trained weights are evaluated on: our pictures are those of the library that has them."""

import sys
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from torchvision import transforms
from torchvision.models import EfficientNet_B0_Weights, ResNet18_Weights, ResNet50_Weights

from robusttrain.core.preparation import Preparation
from robusttrain.data.image_files import ImageFiles
from robusttrain.models.robustbench_classifier import _preparation
from robusttrain.models.timm_classifier import timms_preparation
from robusttrain.models.torchvision_classifier import _preprocessing


@pytest.fixture(params=[(400, 300), (253, 380), (320, 320)])
def picture(request, tmp_path):
    """A file, and what Pillow reads."""
    width, height = request.param
    pixels = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    path = tmp_path / "a.png"
    Image.fromarray(pixels).save(path)
    return str(path), Image.open(path)


def ours(path, preparation):
    return ImageFiles([path], preparation.size, preparation=preparation).load()[0].float() / 255


@pytest.mark.parametrize("name", ["resnet18", "resnet50", "tf_efficientnet_lite1", "test_vit"])
def test_timm(name, picture):
    config = timm.data.resolve_model_data_config(timm.create_model(name))
    config |= {"mean": (0.0,) * 3, "std": (1.0,) * 3}
    theirs = timm.data.create_transform(**config, is_training=False)(picture[1])
    assert torch.equal(ours(picture[0], timms_preparation(timm.create_model(name))), theirs)


def test_what_timm_squeezes_is_not_ours():
    network = timm.create_model("test_vit", pretrained_cfg={"crop_mode": "squash"})
    assert timms_preparation(network) is None


@pytest.mark.parametrize(
    "weights",
    [
        ResNet18_Weights.IMAGENET1K_V1,  # 256, bilinear
        ResNet50_Weights.IMAGENET1K_V2,  # 232, bilinear
        EfficientNet_B0_Weights.IMAGENET1K_V1,  # 256, bicubic
    ],
)
def test_torchvision(weights, picture):
    theirs = weights.transforms(mean=[0.0] * 3, std=[1.0] * 3)(picture[1])
    assert torch.equal(ours(picture[0], _preprocessing(weights)[3]), theirs)


def of_the_zoo(monkeypatch, *steps):
    """RobustBench's function, by a stand-in, which prepares pictures in these steps."""
    package, data = ModuleType("robustbench"), ModuleType("robustbench.data")
    zoo, enums = ModuleType("robustbench.model_zoo"), ModuleType("robustbench.model_zoo.enums")
    enums.BenchmarkDataset = lambda name: SimpleNamespace(value=name)
    enums.ThreatModel = lambda name: SimpleNamespace(value=name)

    def get_preprocessing(dataset, threat_model, model_name, preprocessing):
        assert (dataset.value, threat_model.value, model_name) == ("imagenet", "Linf", "Some")
        return transforms.Compose([*steps, transforms.ToTensor()])

    data.get_preprocessing = get_preprocessing
    for module in (package, data, zoo, enums):
        monkeypatch.setitem(sys.modules, module.__name__, module)
    return transforms.Compose([*steps, transforms.ToTensor()])


@pytest.mark.parametrize("by", ["bilinear", "bicubic"])
def test_robustbench(by, picture, monkeypatch):
    steps = transforms.Resize(256, transforms.InterpolationMode(by)), transforms.CenterCrop(224)
    theirs = of_the_zoo(monkeypatch, *steps)
    found = _preparation("Some", "imagenet", "Linf")
    assert found == Preparation(224, 256, by)
    assert torch.equal(ours(picture[0], found), theirs(picture[1]))


@pytest.mark.parametrize(
    "steps",
    [
        (transforms.Resize([224, 224]),),
        (transforms.CenterCrop(288),),
        (transforms.Resize([224, 224]), transforms.CenterCrop(224)),
        (),
    ],
)
def test_what_the_zoo_prepares_otherwise_is_not_ours(steps, monkeypatch):
    of_the_zoo(monkeypatch, *steps)
    assert _preparation("Some", "imagenet", "Linf") is None


def test_images_that_are_pixels_stay_as_they_are():
    assert _preparation("Some", "cifar10", "Linf") is None
