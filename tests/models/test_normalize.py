"""Normalisation: its formula, and that it leaves no trace in a state dict."""

import pytest
import torch

from robusttrain.core.errors import OptionError
from robusttrain.models import Normalize


def test_formula_channel_by_channel():
    images = torch.tensor([0.0, 0.5, 1.0]).view(1, 3, 1, 1).expand(2, 3, 4, 4)
    result = Normalize([0.5, 0.25, 0.0], [0.5, 0.25, 2.0])(images)
    expected = torch.tensor([-1.0, 1.0, 0.5]).view(1, 3, 1, 1).expand(2, 3, 4, 4)
    assert torch.equal(result, expected)


def test_images_of_another_number_of_channels_are_refused():
    normalize = Normalize([0.5] * 3, [0.25] * 3)
    with pytest.raises(ValueError, match=r"has 3 constants, and images 1 channels$"):
        normalize(torch.zeros(2, 1, 4, 4))  # torch would make three channels of one
    assert Normalize([0.5], [0.25])(torch.zeros(2, 3, 4, 4)).shape == (2, 3, 4, 4)


def test_constants_are_not_in_the_state_dict_but_follow_casts():
    normalize = Normalize([0.5], [0.25])
    assert normalize.state_dict() == {}
    assert normalize.double().mean.dtype == torch.float64


@pytest.mark.parametrize(
    ("mean", "std"), [([0.5], [0.0]), ([0.5], [float("nan")]), ([0.5, 0.5], [1.0])]
)
def test_impossible_constants_name_std(mean, std):
    with pytest.raises(OptionError, match=r"^std = "):
        Normalize(mean, std)
