"""A model that was made for other pixel values than [0, 1] is told."""

import warnings

import pytest
import torch

import robusttrain
from robusttrain.data import Digits
from robusttrain.evaluation.other_values import OtherValues


@pytest.fixture(scope="module")
def digits():
    data = Digits()
    data.setup("fit")
    batch = data.unaugmented("train", 60)
    return batch.images, batch.labels


def evaluated(model, digits):
    """results.json, and what was warned of."""
    attack = robusttrain.attack("square-quick", epsilon=0.05, queries=4)
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        found = robusttrain.evaluate(
            model, *digits, attacks={"square": attack}, audit=False, progress=False
        )
    return found.json, " ".join(str(each.message) for each in told)


def of_bytes(network):
    return lambda x: network(x / 255)


def of_signed(network):
    """Pixels from -1 on: without any it says class 0."""
    return lambda x: network((x + 1) / 2) * (x.amin((1, 2, 3)) < 0)[:, None]


@pytest.mark.parametrize(
    ("wrapped", "values"), [(of_bytes, "from 0 to 255"), (of_signed, "from -1 to 1")]
)
def test_a_model_for_other_values_is_told(wrapped, values, digits):
    network = robusttrain.load("digits-standard").classifier
    found, told = evaluated(wrapped(network), digits)
    assert found["clean"]["accuracy"] < 0.5
    assert found["other_pixel_values"]["values"] == values
    assert found["other_pixel_values"]["accuracy"] > 0.9
    assert f"with values {values} it would be" in told
    assert "another order" not in told


def test_a_model_that_is_bad_for_other_reasons_is_not(digits):
    """One that guesses, and one that refuses other values."""

    def guesses(x):
        return torch.nn.functional.one_hot((x.flatten(1).sum(dim=1) * 1000).long() % 10, 10).float()

    def refuses(x):
        if x.max() > 1 or x.min() < 0:
            raise ValueError("values in [0, 1], please")
        return guesses(x)

    for model in (guesses, refuses):
        found, told = evaluated(model, digits)
        assert "other_pixel_values" not in found
        assert "other pixel values" not in told
        assert "no better than chance" in told


def test_other_values_have_to_be_right_far_more_often():
    right = torch.zeros(100, dtype=torch.bool)
    right[:30] = True
    for better, count in ((45, False), (50, True), (90, True)):
        other = torch.zeros(100, dtype=torch.bool)
        other[:better] = True
        found = OtherValues.of(right, {"from 0 to 255": other})
        assert (found is not None) is count
    few = OtherValues.of(right[28:32], {"from 0 to 255": torch.ones(4, dtype=torch.bool)})
    assert few is None  # two images more are luck
    assert OtherValues.of(right, {}) is None
