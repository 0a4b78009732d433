"""The pretend device itself: what it refuses, and what it counts."""

import threading

import numpy as np
import pytest
import torch
from pretend_device import BACKEND, DEVICE
from subjects import network
from torch import nn
from waits import counted


@pytest.fixture
def x():
    return torch.arange(6.0).view(2, 3).to(DEVICE)


REFUSED = {
    "add": lambda x: x + torch.ones(3),
    "add, on the CPU": lambda x: torch.ones(2, 3) + x,
    "add in place": lambda x: x.add_(torch.ones(2, 3)),
    "add in place, on the CPU": lambda x: torch.ones(2, 3).add_(x),
    "cat": lambda x: torch.cat([x, torch.ones(2, 3)]),
    "index": lambda x: x[torch.tensor([0])],
    "mask": lambda x: x[torch.ones(2, dtype=torch.bool)],
    "stack of numbers": lambda x: torch.stack([x[0, 0], torch.tensor(1.0)]),
    "where": lambda x: torch.where(torch.ones(2, 3) > 0, x, 0),
    "linear": lambda x: nn.Linear(3, 2)(x),
}


@pytest.mark.parametrize("case", REFUSED)
def test_it_refuses_to_mix_with_the_cpu(case, x):
    with pytest.raises(RuntimeError, match="same device"):
        REFUSED[case](x)


def test_other_tests_find_no_accelerator(monkeypatch):
    assert torch.accelerator.is_available()
    monkeypatch.setattr(BACKEND, "shown", False)
    assert not torch.accelerator.is_available()
    parallel = nn.DataParallel(nn.Linear(3, 2))
    assert parallel(torch.ones(1, 3)).device.type == "cpu"


def test_it_is_no_numpy_array(x):
    for way in (lambda: x.numpy(), lambda: np.asarray(x)):
        with pytest.raises((RuntimeError, TypeError)):
            way()


def test_numbers_may_come_from_the_cpu(x):
    with counted() as waits:
        result = torch.where(x > torch.tensor(2.0), x * torch.tensor(2.0), 1.0)
    assert result.device == DEVICE
    assert not waits
    assert result.tolist() == [[1, 1, 1], [6, 8, 10]]


WAITING = {
    "item": (lambda x: x[0, 0].item(), "item"),
    "float": (lambda x: float(x[0, 0]), "item"),
    "format": (lambda x: f"{x[0, 0]:.2f}", "item"),
    "bool": (lambda x: bool((x > 0).any()), "item"),
    "if": (lambda x: 1 if x.sum() > 0 else 0, "item"),
    "equal": (lambda x: torch.equal(x, x), "item"),
    "tolist": (lambda x: x.tolist(), "download"),
    "cpu": (lambda x: x.cpu(), "download"),
    "to": (lambda x: x.to("cpu", torch.float64), "download"),
    "copy": (lambda x: torch.zeros(2, 3).copy_(x), "download"),
    "nonzero": (lambda x: x.nonzero(), "nonzero"),
    "argwhere": (lambda x: torch.argwhere(x), "nonzero"),
    "where": (lambda x: torch.where(x > 0), "nonzero"),
    "masked_select": (lambda x: x.masked_select(x > 0), "mask"),
    "mask": (lambda x: x[x > 0], "mask"),
    "mask of rows": (lambda x: x[x[:, 0] > 0], "mask"),
    "put by a mask": (lambda x: x.__setitem__(x > 0, x[0, :1].expand(5)), "mask"),
    "unique": (lambda x: x.unique(), "size"),
    "bincount": (lambda x: x[0].long().bincount(), "size"),
    "repeat": (lambda x: x[0].repeat_interleave(x[0].long()), "size"),
    "a number at an index": (lambda x: x.__setitem__(x[0, :1].long(), 1.0), "upload"),
    "a number as an element": (lambda x: x.__setitem__((0, 0), 1.0), "upload"),
    "upload": (lambda x: torch.ones(3).to(x.device), "upload"),
    "tensor": (lambda x: torch.tensor([1.0, 2.0], device=x.device), "upload"),
    "new_tensor": (lambda x: x.new_tensor([1.0]), "upload"),
    "as_tensor": (lambda x: torch.as_tensor(5, device=x.device), "upload"),
}


@pytest.mark.parametrize("case", WAITING)
def test_it_counts_what_the_host_waits_for(case, x):
    do, kind = WAITING[case]
    with counted() as waits:
        do(x)
    assert dict(waits) == {kind: 1}


WAITLESS = {
    "arithmetic": lambda x: (x.softmax(1) * 2).sort(dim=1).values.topk(1).indices,
    "index": lambda x: x[x[:, 0].long().clamp(0, 1)],
    "fill by a mask": lambda x: x.__setitem__(x > 0, 0.0),
    "fill by an index": lambda x: x.index_fill_(0, x[0, :1].long(), 1.0),
    "a tensor at an index": lambda x: x.__setitem__(x[0, :1].long(), x[1, 1].clone()),
    "where of three": lambda x: torch.where(x > 0, x, 0),
    "new": lambda x: [
        make(device=x.device)
        for make in (
            lambda device: torch.zeros(3, device=device),
            lambda device: torch.full((2,), 0.5, device=device),
            lambda device: torch.arange(2, 9, 3, device=device),
            lambda device: torch.eye(3, device=device),
            lambda device: torch.rand(2, device=device),
            lambda device: torch.linspace(0, 1, 4, device=device),
        )
    ],
    "another type": lambda x: x.to(torch.float64),
    "upload in the background": lambda x: torch.ones(3).to(x.device, non_blocking=True),
}


@pytest.mark.parametrize("case", WAITLESS)
def test_it_counts_nothing_else(case, x):
    with counted() as waits:
        WAITLESS[case](x)
    assert not waits, waits.told()


def test_new_tensors_hold_what_they_should():
    assert torch.arange(2, 9, 3, device=DEVICE).tolist() == [2, 5, 8]
    assert torch.tensor([[1, 2]], device=DEVICE).tolist() == [[1, 2]]
    assert torch.eye(2, device=DEVICE).tolist() == [[1, 0], [0, 1]]
    assert torch.full((2,), 0.5, device=DEVICE).tolist() == [0.5, 0.5]


def test_views_share_their_numbers(x):
    x[:, 1] = -1
    x.view(6)[0] = 9
    x.T[2].mul_(10)
    assert x.tolist() == [[9, -1, 20], [3, -1, 50]]
    x.data = torch.zeros(2, 3, device=DEVICE)
    assert x.tolist() == [[0, 0, 0], [0, 0, 0]]


def test_backward_passes_run_in_a_thread_of_their_own():
    """As on a GPU; context variables, among others, are not handed over."""
    seen = []

    class Note(torch.autograd.Function):
        @staticmethod
        def forward(ctx, value):
            return value.clone()

        @staticmethod
        def backward(ctx, gradient):
            seen.append(threading.current_thread())
            with counted() as waits:
                gradient.sum().item()
            return gradient * len(waits)

    point = torch.ones(2, device=DEVICE, requires_grad=True)
    with counted() as waits:
        Note.apply(point).sum().backward()
    assert seen != [threading.current_thread()]
    assert dict(waits) == {"item": 1}
    assert point.grad.tolist() == [1, 1]


@pytest.mark.parametrize("make", [torch.optim.Adam, lambda p: torch.optim.SGD(p, 0.1, 0.9)])
def test_a_network_trains_on_it_as_on_the_cpu(make):
    after = []
    for device in ("cpu", DEVICE):
        model = network().train().to(device)
        images = torch.rand(4, 3, 8, 8, generator=torch.Generator().manual_seed(1)).to(device)
        optimizer = make(model.parameters())
        for _ in range(2):
            optimizer.zero_grad()
            model(images).square().sum().backward()
            optimizer.step()
        after.append([each.cpu() for each in model.state_dict().values()])
    for one, other in zip(*after, strict=True):
        torch.testing.assert_close(one, other)


def test_autocast_computes_products_in_the_short_type(x):
    layer = nn.Linear(3, 2).to(DEVICE)
    with torch.autocast(DEVICE.type, torch.bfloat16):
        assert layer(x).dtype == torch.bfloat16
    assert layer(x).dtype == torch.float32
