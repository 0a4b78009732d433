"""timm models: their own constants and size, and errors of one line."""

import pytest
import timm
import torch

from robusttrain.core.errors import OptionError, UserError
from robusttrain.evaluation import check_classes
from robusttrain.models import TimmClassifier


def test_constants_and_size_are_the_models_own():
    model = TimmClassifier("tf_efficientnet_lite0", num_classes=7).eval()
    assert model.normalize.mean.flatten().tolist() == [0.5] * 3
    assert (model.num_classes, model.in_channels, model.image_size) == (7, 3, 224)
    images = torch.rand(2, 3, 64, 64)
    logits = model(images)
    assert logits.shape == (2, 7)
    assert torch.equal(logits, model.network((images - 0.5) / 0.5))


def test_other_channels_take_the_average_of_the_constants():
    model = TimmClassifier("resnet18", in_channels=2).eval()
    torch.testing.assert_close(
        model.normalize.mean.flatten(), torch.full((2,), (0.485 + 0.456 + 0.406) / 3)
    )
    torch.testing.assert_close(
        model.normalize.std.flatten(), torch.full((2,), (0.229 + 0.224 + 0.225) / 3)
    )
    assert model(torch.rand(1, 2, 32, 32)).shape == (1, 10)


@pytest.mark.parametrize(("name", "size"), [("test_vit", 64), ("resnet18", 40)])
def test_a_given_size_works_for_models_of_fixed_and_of_any_size(name, size):
    model = TimmClassifier(name, image_size=size).eval()
    assert model.image_size == size
    assert model(torch.rand(1, 3, size, size)).shape == (1, 10)


def test_unknown_name_suggests_the_nearest():
    with pytest.raises(
        OptionError, match=r"^name = 'resnet81': timm has no such model; .*\bresnet18\b"
    ) as caught:
        TimmClassifier("resnet81")
    assert "\n" not in str(caught.value)


def test_unknown_tag_suggests_the_nearest():
    with pytest.raises(
        OptionError, match=r"^name = 'resnet18.a1_in1': timm has no such tag; .*resnet18\.a1_in1k"
    ):
        TimmClassifier("resnet18.a1_in1")


def test_failed_download_is_one_line(monkeypatch):
    def offline(name, pretrained, **options):
        assert pretrained
        raise OSError("We cannot connect\nand here is a long story")

    monkeypatch.setattr(timm, "create_model", offline)
    with pytest.raises(
        UserError, match=r"^pretrained = True: .*resnet18.*We cannot connect\)"
    ) as caught:
        TimmClassifier("resnet18", pretrained=True)
    assert "\n" not in str(caught.value)


def test_pretrained_and_classes_reach_timm(monkeypatch):
    seen = {}
    create = timm.create_model

    def without_network(name, pretrained, **options):
        seen.update(options, pretrained=pretrained)
        return create(name, pretrained=False, **options)

    monkeypatch.setattr(timm, "create_model", without_network)
    TimmClassifier("test_resnet", num_classes=4, pretrained=True, in_channels=1)
    assert seen == {"pretrained": True, "num_classes": 4, "in_chans": 1}


def test_downloaded_weights_bring_their_constants_size_and_classes(monkeypatch):
    create = timm.create_model
    own = {
        "mean": (0.1, 0.2, 0.3),
        "std": (0.4, 0.5, 0.6),
        "input_size": (3, 48, 48),
        "num_classes": 12,
    }

    def without_network(name, pretrained, **options):
        return create(name, pretrained=False, pretrained_cfg=own, **options)

    monkeypatch.setattr(timm, "create_model", without_network)
    model = TimmClassifier("test_resnet", num_classes=12, pretrained=True).eval()
    assert model.pretrained_classes == 12
    assert model.image_size == model.pretrained_size == 48
    images = torch.rand(1, 3, 48, 48)
    by_hand = (images - torch.tensor(own["mean"]).view(3, 1, 1)) / torch.tensor(own["std"]).view(
        3, 1, 1
    )
    assert torch.equal(model(images), model.network(by_hand))
    # An untrained head
    assert TimmClassifier("test_resnet", num_classes=5, pretrained=True).pretrained_classes == 12
    assert TimmClassifier("test_resnet", num_classes=12).pretrained_classes is None
    assert TimmClassifier("test_resnet", num_classes=12).pretrained_size is None


def test_a_transformer_of_another_size_says_which():
    model = TimmClassifier("vit_tiny_patch16_224", 2)
    with pytest.raises(UserError, match=r"of \(3, 32, 32\): .*--data\.image_size 224 resizes"):
        check_classes(model, torch.zeros(2, 3, 32, 32), 2)
