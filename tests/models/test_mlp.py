"""Fully connected networks."""

import pytest
import torch
from torch import nn

from robusttrain.core.errors import OptionError
from robusttrain.models import MLP


@pytest.mark.parametrize("depth", [0, 1, 3])
def test_layers_and_logits(depth):
    model = MLP(7, 1, 8, depth, 5)
    linear = [layer for layer in model.modules() if isinstance(layer, nn.Linear)]
    assert [(layer.in_features, layer.out_features) for layer in linear] == [
        (64 if number == 0 else 5, 7 if number == depth else 5) for number in range(depth + 1)
    ]
    assert model(torch.rand(3, 1, 8, 8)).shape == (3, 7)


def test_without_hidden_layers_it_is_linear():
    model, x = MLP(3, 1, 4, 0), torch.rand(2, 1, 4, 4)
    layer = model.layers[1]
    torch.testing.assert_close(model(x), (x.flatten(1) - 0.5) @ layer.weight.T + layer.bias)


@pytest.mark.parametrize(("option", "value"), [("depth", -1), ("width", 0)])
def test_impossible_options_are_named(option, value):
    with pytest.raises(OptionError, match=rf"^{option} = {value}"):
        MLP(**{option: value})


def test_signals_pass_nine_layers():
    """Each layer keeps their size: torch's own start divides it by 2.4 each time."""
    torch.manual_seed(0)
    model = MLP(10, 1, 8, 9, 500)
    first, last = model.layers[:3], model.layers[:-1]
    x = torch.rand(64, 1, 8, 8)
    assert 0.5 < (last(x).std() / first(x).std()).item() < 2
