"""The embedded digits."""

import pytest
import torch
from sklearn.datasets import load_digits

from robusttrain.core.errors import OptionError
from robusttrain.data import Digits, Facts, digits


def test_digits_at_their_own_size_are_those_of_scikit_learn():
    data = Digits(image_size=8, validation=0.0)
    data.setup()
    assert data.facts() == Facts(10, 1, 8)
    train, test = data._train, data._test
    assert (len(train), len(test)) == (1500, 297)
    together = torch.cat([train.images, test.images])
    assert together.dtype == torch.uint8
    assert (together.min(), together.max()) == (0, 255)
    # As multisets of rows: each digit is in exactly one of the splits, with its label.
    digits = load_digits()
    expected = torch.from_numpy(digits.images).view(-1, 64) * 255 / 16
    expected = torch.cat([expected.round(), torch.from_numpy(digits.target)[:, None]], 1)
    found = torch.cat([together.view(-1, 64), torch.cat([train.labels, test.labels])[:, None]], 1)
    assert sorted(expected.long().tolist()) == sorted(found.long().tolist())


def test_digits_are_enlarged_and_the_split_is_fixed():
    data, other = Digits(), Digits(seed=5)
    for each in (data, other):
        each.setup()
    assert data._test.images.shape == (297, 1, 16, 16)
    assert torch.equal(data._test.images, other._test.images)
    assert set(data._test.labels.tolist()) == set(range(10))
    with pytest.raises(OptionError, match="image_size = 7"):
        Digits(image_size=7)


def test_another_layout_of_scikit_learn_is_asked_by_its_function(monkeypatch):
    """The file is read directly; a release may keep it elsewhere."""
    found = digits._stored.__wrapped__()
    monkeypatch.setattr(digits, "find_spec", lambda name: None)
    for ours, theirs in zip(found, digits._stored.__wrapped__(), strict=True):
        assert torch.equal(ours.double(), theirs.double())
