"""torchvision's models: constants and size of the weights' own metadata, errors of one line."""

import logging

import pytest
import torch
from torchvision.models import ResNet18_Weights, VGG11_Weights
from torchvision.models import resnet18 as torchvisions

from robusttrain.core.errors import OptionError, UserError
from robusttrain.models import Normalize, TorchvisionClassifier

MEAN = [0.485, 0.456, 0.406]


def test_constants_and_size_are_those_of_the_weights():
    model = TorchvisionClassifier("resnet18", num_classes=7).eval()
    torch.testing.assert_close(model.normalize.mean.flatten(), torch.tensor(MEAN))
    assert (model.num_classes, model.in_channels, model.image_size) == (7, 3, 224)
    assert model.pretrained_classes is model.pretrained_size is None
    images = torch.rand(2, 3, 64, 64)
    assert torch.equal(model(images), model.network(model.normalize(images)))
    assert TorchvisionClassifier("efficientnet_b1").image_size == 240


@pytest.fixture
def weights(monkeypatch):
    """The state dict of an untrained network, in place of the download."""
    torch.manual_seed(1)
    state = torchvisions(num_classes=1000).state_dict()
    monkeypatch.setattr(ResNet18_Weights, "get_state_dict", lambda self, **options: state)
    return state


def test_trained_weights_say_their_classes(weights):
    model = TorchvisionClassifier("resnet18", 1000, weights="DEFAULT").eval()
    assert (model.pretrained_classes, model.pretrained_size) == (1000, 224)
    assert all(torch.equal(model.network.state_dict()[key], weights[key]) for key in weights)
    # A checkpoint names no weights, so it holds their constants.
    assert "normalize.mean" in model.state_dict()


def test_with_another_number_of_classes_the_last_layer_is_new(weights):
    model = TorchvisionClassifier("resnet18", 5, weights="IMAGENET1K_V1").eval()
    assert model(torch.rand(1, 3, 32, 32)).shape == (1, 5)
    assert torch.equal(model.network.conv1.weight, weights["conv1.weight"])
    assert model.pretrained_classes == 1000  # so that evaluate.py refuses it without --weights


def test_weights_that_fit_in_part_are_refused(weights):
    """With another number of classes, too: only the last layer is new then."""
    weights["layer1.0.conv1.weight"] = weights["layer1.0.conv1.weight"][:, :3]
    for classes in (5, 1000):
        with pytest.raises(UserError, match=r"does not fit resnet18 .*layer1\.0\.conv1"):
            TorchvisionClassifier("resnet18", classes, weights="DEFAULT")


def test_counts_of_batches_may_be_missing(weights):
    for name in [name for name in weights if "num_batches" in name]:
        del weights[name]
    assert TorchvisionClassifier("resnet18", 1000, weights="DEFAULT").pretrained_classes == 1000


def test_other_channels_answer_to_grey_images_alike(weights):
    colour = TorchvisionClassifier("resnet18", 1000, weights="DEFAULT").eval()
    grey = TorchvisionClassifier("resnet18", 1000, weights="DEFAULT", in_channels=1).eval()
    colour.normalize = Normalize([sum(MEAN) / 3] * 3, [(0.229 + 0.224 + 0.225) / 3] * 3)
    images = torch.rand(2, 1, 32, 32)
    torch.testing.assert_close(grey(images), colour(images.expand(-1, 3, -1, -1)))


def test_weights_that_say_no_constants_are_not_guessed(monkeypatch, caplog):
    caplog.set_level(logging.INFO, "robusttrain")
    monkeypatch.setattr(VGG11_Weights, "transforms", lambda self: lambda image: image)
    model = TorchvisionClassifier("vgg11", 3, in_channels=3)
    assert (model.normalize.mean.flatten().tolist(), model.image_size) == ([0.0] * 3, None)
    assert "no mean and std for vgg11: images are not normalised" in caplog.text


def test_a_size_reaches_models_of_fixed_size():
    model = TorchvisionClassifier("vit_b_32", image_size=64).eval()
    assert model(torch.rand(1, 3, 64, 64)).shape == (1, 10)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"name": "resnet81"}, r"name = 'resnet81': .*the nearest are .*\bresnet18\b"),
        ({"name": "fcn_resnet50"}, "torchvision has no such classifier"),
        ({"name": "resnet18", "weights": "V9"}, "weights = 'V9': must be one of DEFAULT, IMAGENET"),
    ],
)
def test_wrong_names_suggest_right_ones(arguments, said):
    with pytest.raises(OptionError, match=said):
        TorchvisionClassifier(**arguments)


def test_a_failed_download_is_one_line(monkeypatch):
    def offline(self, **options):
        raise OSError("We cannot connect\nand here is a long story")

    monkeypatch.setattr(ResNet18_Weights, "get_state_dict", offline)
    with pytest.raises(UserError, match=r"could not be had \(We cannot connect\)") as caught:
        TorchvisionClassifier("resnet18", weights="DEFAULT")
    assert "\n" not in str(caught.value)
