"""What a backward pass keeps, on networks whose sizes are known; and copies that attacks stack."""

import pytest
import torch
from torch import nn

from robusttrain.attacks import (
    Average,
    AverageLogits,
    Backprop,
    Diverse,
    FiniteDifference,
    ProjectedGradient,
    Restarts,
    Smooth,
)
from robusttrain.evaluation.memory import bytes_per_image, free_bytes
from robusttrain.training.refusals import stacked


def test_what_each_image_keeps():
    """Two nonlinearities keep their outputs of 1,000 floats each, whatever the weights weigh."""
    torch.manual_seed(0)
    layers = [
        nn.Flatten(),
        nn.Linear(48, 1000),
        nn.Tanh(),
        nn.Linear(1000, 1000),
        nn.Tanh(),
        nn.Linear(1000, 3),
    ]
    found = bytes_per_image(nn.Sequential(*layers), torch.rand(4, 3, 4, 4))
    assert found == 2 * 1000 * 4
    wider = [nn.Flatten(), nn.Linear(48, 4000), nn.Tanh(), nn.Linear(4000, 3)]
    assert bytes_per_image(nn.Sequential(*wider), torch.rand(4, 3, 4, 4)) == 4000 * 4


def test_the_model_is_left_as_it_was(convnet, images):
    model = convnet().train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    assert bytes_per_image(model, images()) > images()[0].numel() * 4
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert model.training
    assert all(weight.grad is None for weight in model.parameters())


def test_memory_that_is_free():
    free = free_bytes(torch.device("cpu"))
    assert free is None or 2**20 < free < 2**50


@pytest.mark.parametrize(
    ("gradient", "copies"),
    [
        (Backprop(), 1),
        (Average(500), 2),  # 256 images at once
        (Average(500, chunk=30), 30),
        (Average(8, chunk=30), 8),
        (Average(8, Smooth(5, chunk=5), chunk=2), 10),
        (Diverse(inner=Average(8, chunk=4)), 4),
        (AverageLogits(20, chunk=3), 3),
        (FiniteDifference(100, chunk=7), 7),
    ],
)
def test_copies_that_are_evaluated_at_once(linear, images, streams, gradient, copies):
    attack = ProjectedGradient(steps=1, step_size=0.1, gradient=gradient)
    assert stacked(attack, 128, 3072) == copies
    assert stacked(Restarts(attack, 2), 128, 3072) == copies
    # What really comes, at a batch of 128.
    seen = []

    class Watched(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = linear()

        def forward(self, points):
            seen.append(len(points))
            return self.inner(points)

    attack(Watched(), images(128), torch.zeros(128, dtype=torch.int64), streams(128))
    assert max(seen) == 128 * copies
