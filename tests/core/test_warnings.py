"""A warning names the line that called the package."""

from __future__ import annotations

import inspect
import warnings

import pytest
import torch
from torch import Tensor, nn

import robusttrain
from robusttrain.core.advice import warn, warn_once


class Sure(nn.Module):
    """Two probabilities."""

    def forward(self, images: Tensor) -> Tensor:
        """(B, C, H, W) to (B, 2)."""
        return images.flatten(1)[:, :2].softmax(dim=1)


@pytest.mark.parametrize("call", [warn, warn_once])
def test_of_a_direct_call(call: object) -> None:
    with pytest.warns(UserWarning, match="so") as caught:
        call("so")  # type: ignore[operator]

    assert caught[0].filename == __file__


@pytest.mark.filterwarnings("always")
def test_of_what_the_package_found_far_inside() -> None:
    images, labels = torch.rand(4, 3, 8, 8), torch.zeros(4, dtype=torch.long)
    attack = robusttrain.attack("pgd-quick", epsilon=0.1)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        here = inspect.currentframe()
        assert here is not None
        line = here.f_lineno + 1
        attack(Sure(), images, labels)

    ours = [each for each in caught if "probabilities" in str(each.message)]
    assert [(each.filename, each.lineno) for each in ours] == [(__file__, line)]
