"""A fast copy that follows a model in training."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from robusttrain.attacks import Linf, ProjectedGradient
from robusttrain.models import CifarResNet, FastModel, VGGSmall, fast_twin
from robusttrain.models.defended import DefendedClassifier
from robusttrain.training.crafting import craft, crafting_in


def step(model, images):
    """A step of training that moves weights and running statistics."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    F.cross_entropy(model.train()(images), torch.tensor([0, 1, 2, 1])).backward()
    optimizer.step()


@pytest.mark.parametrize(
    "make",
    [
        lambda: CifarResNet(3, widths=[4, 8], blocks=1),
        lambda: VGGSmall(num_classes=3, image_size=16),
    ],
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_it_follows_every_step(make, dtype):
    torch.manual_seed(0)
    model, images = make(), torch.rand(4, 3, 16, 16)
    copies = []
    for _ in range(3):
        step(model, images)
        twin = fast_twin(model, dtype)
        copies.append(twin)
        expected = copy.deepcopy(model).eval()(images)
        tolerance = 1e-4 if dtype == torch.float32 else 0.05
        assert (twin(images) - expected).abs().max() < tolerance * expected.abs().max()
        assert model.training
        assert all(weight.requires_grad for weight in model.parameters())
    assert copies[0] is copies[2], "its structure is made once"
    assert isinstance(copies[0], FastModel)


def test_batch_norm_is_folded_and_the_rest_is_copied():
    model = CifarResNet(3, widths=[4, 8], blocks=1)
    twin = fast_twin(model)
    assert twin.folded == sum(isinstance(layer, nn.BatchNorm2d) for layer in model.modules())
    with torch.no_grad():
        model.classifier.bias += 3
        model.normalize.get_buffer(next(name for name, _ in model.normalize.named_buffers())).add_(
            0.1
        )
    images = torch.rand(2, 3, 16, 16)
    torch.testing.assert_close(fast_twin(model)(images), model.eval()(images), atol=1e-4, rtol=1e-4)


def test_batch_norm_is_folded_within_mixed_precision():
    """Where training runs under autocast, the check of the folded copy must not see bfloat16's
    rounding.
    """
    model = CifarResNet(10, widths=[16, 32], blocks=3)
    with torch.autocast("cpu", torch.bfloat16):
        twin = fast_twin(model, torch.bfloat16)
    assert twin.folded == sum(isinstance(layer, nn.BatchNorm2d) for layer in model.modules())
    assert not twin.autocast


def test_a_model_that_gains_nothing_is_taken_as_it_is(linear):
    model = linear()
    assert fast_twin(model) is model
    assert isinstance(fast_twin(model, torch.bfloat16), FastModel)


@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16])
def test_inner_attacks_run_on_it(images, streams, convnet, monkeypatch, precision):
    """The attack climbs the copy, in the type of autocast; what it finds is as bad for the model
    itself.
    """
    model, seen = DefendedClassifier(None, convnet()).train(), []
    labels = torch.tensor([0, 2, 1, 1])
    forward = FastModel.forward

    def spy(self, x):
        seen.append(self.dtype)
        return forward(self, x)

    monkeypatch.setattr(FastModel, "forward", spy)
    attack = ProjectedGradient(steps=3, step_size=0.05, threat=Linf(0.1))
    with torch.autocast("cpu", torch.bfloat16, enabled=precision == torch.bfloat16):
        found = craft(model, attack, lambda target: target, images(), labels, streams())
    assert seen[-3:] == [precision] * 3
    assert found.dtype == torch.float32
    with crafting_in(torch.bfloat16):  # told otherwise
        craft(model, attack, lambda target: target, images(), labels, streams())
    assert seen[-3:] == [torch.bfloat16] * 3
    plain = attack(model, images(), labels, streams().fold("inner attack"))
    with torch.no_grad():
        clean, ours, theirs = (
            F.cross_entropy(model.eval()(x), labels) for x in (images(), found, plain)
        )
    assert ours - clean > 0.9 * (theirs - clean) > 0
