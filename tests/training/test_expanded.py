"""Tensors whose elements share memory: no checkpoint could be read into them."""

import pytest
import torch
from torch import nn

from robusttrain.core.errors import UserError
from robusttrain.training.refusals import refuse_expanded


def network(tensor, persistent=True):
    made = nn.Sequential(nn.Flatten(), nn.Linear(4, 2))
    made[1].register_buffer("b", tensor, persistent)
    return made


@pytest.mark.parametrize("averaged", [False, True])
def test_what_cannot_be_copied_into_is_refused(averaged):
    expanded = torch.zeros(1).expand(8)
    with pytest.raises(RuntimeError, match="single memory location"):
        expanded.copy_(torch.ones(8))
    with pytest.raises(UserError, match=r"model: 1\.b is an expanded tensor"):
        refuse_expanded(network(expanded), averaged)
    # No checkpoint holds it; averaged buffers take its place all the same.
    passing = network(expanded, persistent=False)
    if averaged:
        with pytest.raises(UserError, match=r"1\.b is an expanded tensor"):
            refuse_expanded(passing, averaged)
    else:
        refuse_expanded(passing, averaged)


@pytest.mark.parametrize(
    "tensor",
    [
        torch.zeros(1).expand(8).clone(),
        torch.arange(8).expand(1, -1),
        torch.zeros(3, 4).T,
        torch.zeros(()),
        torch.zeros(0, 3).expand(2, 0, 3),
    ],
)
def test_others_pass(tensor):
    refuse_expanded(network(tensor), True)


def test_a_frozen_weight_is_named():
    made = network(torch.zeros(2))
    made[1].weight = nn.Parameter(torch.zeros(2, 1).expand(2, 4), requires_grad=False)
    with pytest.raises(UserError, match=r"model: 1\.weight is an expanded tensor"):
        refuse_expanded(made, False)
