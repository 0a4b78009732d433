"""A frozen module: training cannot find it, but it is saved, loaded, copied and moved."""

import copy

import pytest
import torch
from torch import nn

from robusttrain.models.frozen import Frozen


class Parent(nn.Module):
    """A trained layer beside a frozen network."""

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.own = nn.Linear(2, 2)
        self.held = Frozen(nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.Dropout()))


def test_training_does_not_find_it():
    parent = Parent()
    assert {id(parameter) for parameter in parent.parameters()} == {
        id(value) for value in parent.own.parameters()
    }
    assert list(parent.buffers()) == []
    assert not any(isinstance(module, nn.BatchNorm2d) for module in parent.modules())
    assert not any(name.startswith("held.") for name, _ in parent.named_modules())
    found = []
    parent.apply(found.append)
    assert not any(isinstance(module, nn.Dropout) for module in found)


def test_training_cannot_wake_it():
    parent = Parent()
    parent.train()
    parent.held.train(True)
    parent.requires_grad_(True)
    assert not any(module.training for module in parent.held.module.modules())
    assert not any(parameter.requires_grad for parameter in parent.held.module.parameters())
    before = copy.deepcopy(parent.held.module.state_dict())
    images = torch.rand(4, 1, 5, 5)
    assert torch.equal(parent.held(images), parent.held(images))  # no dropout
    assert all(
        torch.equal(value, before[name]) for name, value in parent.held.module.state_dict().items()
    )


def test_it_takes_over_a_module_in_training_mode():
    network = nn.BatchNorm2d(2).train()
    frozen = Frozen(network)
    assert frozen.module is network
    assert not network.training
    assert not network.weight.requires_grad


def test_state_dict_holds_it_under_its_own_name_and_restores_it():
    source, target = Parent(0), Parent(1)
    state = source.state_dict()
    assert set(state) == {"own.weight", "own.bias"} | {
        f"held.{name}" for name in source.held.module.state_dict()
    }
    assert not torch.equal(source.held.module[0].weight, target.held.module[0].weight)
    target.load_state_dict(state)
    assert all(torch.equal(value, state[name]) for name, value in target.state_dict().items())
    images = torch.rand(2, 1, 5, 5)
    assert torch.equal(source.held(images), target.held(images))


@pytest.mark.parametrize("kind", ["missing", "unexpected", "shape"])
def test_what_does_not_fit_is_reported_with_its_full_name(kind):
    parent, state = Parent(), Parent(1).state_dict()
    if kind == "missing":
        name = "held.0.weight"
        del state[name]
    elif kind == "unexpected":
        name = "held.7.weight"
        state[name] = torch.zeros(1)
    else:
        name = "0.weight"
        state["held.0.weight"] = torch.zeros(5, 1, 3, 3)
    with pytest.raises(RuntimeError, match=name.replace(".", r"\.")):
        parent.load_state_dict(state)


def test_without_strictness_wrong_keys_are_returned():
    parent, state = Parent(), Parent(1).state_dict()
    state["held.7.weight"] = state.pop("held.0.weight")
    result = parent.load_state_dict(state, strict=False)
    assert result.missing_keys == ["held.0.weight"]
    assert result.unexpected_keys == ["held.7.weight"]
    assert torch.equal(parent.held.module[0].bias, state["held.0.bias"])


def test_a_deep_copy_is_independent_and_still_frozen():
    parent = Parent()
    parent.held.derived("half", lambda model: copy.deepcopy(model).half())
    twin = copy.deepcopy(parent)
    assert torch.equal(twin.held.module[0].weight, parent.held.module[0].weight)
    parent.held.module[0].weight.fill_(7)
    assert not (twin.held.module[0].weight == 7).any()
    assert list(twin.held.parameters()) == []
    made = twin.held.derived("half", lambda model: copy.deepcopy(model).bfloat16())
    assert made[0].weight.dtype == torch.bfloat16  # made anew: a copy shares nothing


def test_a_module_held_twice_is_copied_once():
    frozen = Frozen(nn.Linear(1, 1))
    pair = copy.deepcopy(nn.ModuleList([frozen, frozen]))
    assert pair[0] is pair[1]


def test_it_follows_dtype_and_device():
    parent = Parent()
    assert parent.double().held.module[0].weight.dtype == torch.float64
    assert parent.held.module[1].running_mean.dtype == torch.float64
    assert parent.to("meta").held.module[0].weight.device.type == "meta"


def scaled(model: nn.Module) -> nn.Module:
    return copy.deepcopy(model).requires_grad_(False)


def test_what_is_derived_is_made_once_for_each_key():
    frozen, made = Parent().held, []
    for key in ("a", "b", "a"):
        frozen.derived(key, lambda model, key=key: made.append(key) or scaled(model))
    assert made == ["a", "b"]


@pytest.mark.parametrize("change", ["load", "partial load", "to"])
def test_what_is_derived_is_dropped_when_the_weights_change(change):
    parent, state = Parent(0), Parent(1).state_dict()
    old = parent.held.derived("copy", scaled)
    if change == "to":
        parent.double()
    elif change == "load":
        parent.load_state_dict(state)
    else:  # what fits is loaded before torch reports what does not
        state["held.1.weight"] = torch.zeros(5)
        with pytest.raises(RuntimeError, match="size mismatch"):
            parent.load_state_dict(state)
        assert torch.equal(parent.held.module[0].weight, state["held.0.weight"])
    new = parent.held.derived("copy", scaled)
    assert new is not old
    assert torch.equal(new[0].weight, parent.held.module[0].weight)
