"""The generator of any accelerator is watched, seeded and put back with the others."""

import pretend_device
import torch
from pretend_device import BACKEND, DEVICE

from robusttrain.core.generators import SharedGenerators


def test_a_generator_of_the_device(monkeypatch):
    own = torch.Generator()
    monkeypatch.setattr(BACKEND, "get_rng_state", lambda device=None: own.get_state())
    monkeypatch.setattr(BACKEND, "set_rng_state", lambda state, device=None: own.set_state(state))
    monkeypatch.setattr(BACKEND, "manual_seed", own.manual_seed)
    assert DEVICE.type == pretend_device.DEVICE.type != "cpu"
    generators = SharedGenerators(DEVICE)
    assert not generators.drawn
    first = torch.rand(3, generator=own)
    assert generators.drawn
    generators.put_back()
    assert not generators.drawn
    assert torch.equal(torch.rand(3, generator=own), first)
    generators.seed(7)
    seeded = torch.rand(3, generator=own)
    generators.seed(7)
    assert torch.equal(torch.rand(3, generator=own), seeded)
    assert not torch.equal(seeded, first)
    generators.put_back()
    assert not generators.drawn
