"""Readying a model for attack, and putting everything back whatever happens."""

import pytest
import torch
from torch import nn

from robusttrain.attacks import prepared


def trained() -> nn.Sequential:
    """A network in the middle of training, with a frozen batch norm and a frozen parameter."""
    network = nn.Sequential(
        nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.Sequential(nn.Dropout(), nn.BatchNorm2d(2))
    )
    network.train()
    network[1].eval()
    network[0].bias.requires_grad_(False)
    return network


def state(model: nn.Module) -> tuple[list[bool], list[bool]]:
    return [part.training for part in model.modules()], [
        value.requires_grad for value in model.parameters()
    ]


def test_inside_everything_is_ready():
    model = trained()
    with torch.inference_mode(), prepared(model):
        assert state(model) == ([False] * 6, [False] * 6)
        assert torch.is_grad_enabled()
        assert not torch.is_inference_mode_enabled()
        images = torch.zeros(2, 1, 5, 5, requires_grad=True)
        assert torch.autograd.grad(model(images).sum(), images)[0].shape == images.shape


@pytest.mark.parametrize("fails", [False, True])
def test_afterwards_everything_is_as_before(fails):
    model = trained()
    before, statistics, random = (
        state(model),
        model[2][1].running_mean.clone(),
        torch.get_rng_state(),
    )
    assert before == ([True, True, False, True, True, True], [True, False, True, True, True, True])
    try:
        with torch.no_grad(), prepared(model):
            model(torch.rand(2, 1, 5, 5))
            torch.rand(3)
            torch.manual_seed(0)
            if fails:
                raise KeyboardInterrupt
    except KeyboardInterrupt:
        assert fails
    assert state(model) == before
    assert torch.equal(model[2][1].running_mean, statistics)
    assert torch.equal(torch.get_rng_state(), random)
    assert torch.is_grad_enabled()


def test_gradients_of_parameters_are_left_alone():
    model = trained()
    model[0].weight.grad = torch.full_like(model[0].weight, 3)
    with prepared(model):
        images = torch.rand(2, 1, 5, 5, requires_grad=True)
        model(images).sum().backward()
    assert (model[0].weight.grad == 3).all()
    assert all(value.grad is None for name, value in model.named_parameters() if name != "0.weight")


def test_a_graph_built_before_still_goes_backward():
    """Adversarial training may attack between its forward and its backward pass."""
    model = trained().double()
    loss = model(torch.rand(4, 1, 5, 5, dtype=torch.float64)).square().sum()
    with prepared(model):
        model(torch.rand(4, 1, 5, 5, dtype=torch.float64))
    loss.backward()
    assert model[0].weight.grad.abs().max() > 0


def test_a_train_method_that_does_more_is_not_called():
    class Stubborn(nn.BatchNorm2d):
        def train(self, mode: bool = True):
            raise AssertionError("train() was called")

    model = Stubborn(2)
    with prepared(model):
        assert not model.training
    assert model.training


def test_it_nests():
    model = trained()
    before = state(model)
    with prepared(model):
        with prepared(model):
            pass
        assert state(model) == ([False] * 6, [False] * 6)
    assert state(model) == before
