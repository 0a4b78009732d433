"""An attack that is called by itself says that it has nothing to follow."""

import warnings

import pytest
import torch

import robusttrain


def rounded(network):
    return lambda x: network((x * 4).round() / 4)


@pytest.mark.parametrize("name", ["pgd", "fgsm", "apgd-ce"])
def test_a_gradient_that_is_zero_everywhere_is_told(name, images, linear):
    x, model = images(6), linear()
    y = model(x).argmax(dim=1)
    attack = robusttrain.attack(name, epsilon=0.05)
    with pytest.warns(UserWarning, match=r"the gradient is exactly zero .* \(bpda-i\)"):
        attack(rounded(model), x, y)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        attack(model, x, y)


def test_attacks_by_answers_alone_need_none(images, linear, recwarn):
    x, model = images(4), linear()
    attack = robusttrain.attack("square-quick", epsilon=0.05, queries=5)
    attack(rounded(model), x, model(x).argmax(dim=1))
    assert not [each for each in recwarn if "gradient" in str(each.message)]


def test_asking_changes_no_result(images, linear, streams):
    """The gradient that is asked for leaves torch's generator, and the images, as they were."""
    x, model = images(4), linear()
    before, y = x.clone(), model(x).argmax(dim=1)
    attack = robusttrain.attack("pgd", epsilon=0.05, steps=3)
    torch.manual_seed(0)
    found = attack(model, x, y)
    torch.manual_seed(0)
    again = attack.attack(attack.source(robusttrain.DefendedClassifier.of(model)), x, y)
    assert torch.equal(found, again)
    assert torch.equal(x, before)
