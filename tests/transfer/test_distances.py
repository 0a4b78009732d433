"""RMSD, L2 and Linf."""

import pytest
import torch
from torchmetrics.functional import mean_squared_error

from robusttrain.attacks import L2, Linf
from robusttrain.transfer import l2, linf, rmsd


def test_distances_that_were_counted_by_hand():
    images = torch.zeros(2, 1, 2, 2)
    adversarial = torch.tensor([[[[0.3, 0.0], [0.0, -0.4]]], [[[0.1, 0.1], [0.1, 0.1]]]])
    assert rmsd(adversarial, images).tolist() == pytest.approx([0.25, 0.1])
    assert l2(adversarial, images).tolist() == pytest.approx([0.5, 0.2])
    assert linf(adversarial, images).tolist() == pytest.approx([0.4, 0.1])


def test_they_agree_with_torchmetrics_and_with_the_threats(images):
    first, second = images(5), images(5, seed=1)
    reference = [
        mean_squared_error(a, b, squared=False).item() for a, b in zip(first, second, strict=True)
    ]
    assert rmsd(first, second).tolist() == pytest.approx(reference)
    assert torch.allclose(l2(first, second), L2().distance(first, second))
    assert torch.equal(linf(first, second), Linf().distance(first, second))
