"""Another model that does not know the images is told before its attack is believed."""

import warnings

import torch
from torch import nn

import robusttrain
from robusttrain.attacks import Ensemble, Linf, OtherModel, ProjectedGradient, Target
from robusttrain.evaluation import Scenario

SETTINGS = {"threat": Linf(0.05), "precision": "float32", "progress": False, "audit": False}


class Shifted(nn.Module):
    """The same classes in another order."""

    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, images):
        return self.model(images).roll(1, 1)


def told(model, images, source, count=24):
    """The lines about the attacker's model."""
    x = images(count)
    with torch.no_grad():
        y = model(x).argmax(1)
    attacks = {"theirs": Scenario(ProjectedGradient(2), source)}
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        robusttrain.evaluate(model, x, y, attacks=attacks, **SETTINGS)
    return [str(each.message) for each in caught if "attacker's model" in str(each.message)]


def test_another_order_of_the_classes_is_told(linear, images):
    model = linear(classes=4)
    (line,) = told(model, images, OtherModel(Shifted(model)))
    assert line.startswith("theirs: the attacker's model is right on 0 of 24 images")


def test_each_member_of_an_ensemble_is_asked(linear, images):
    model = linear(classes=4)
    members = [OtherModel(model), OtherModel(Shifted(model)), Target()]
    assert len(told(model, images, Ensemble(members))) == 1


def test_models_that_know_the_images_and_few_images_are_not_told(linear, images):
    model = linear(classes=4)
    assert not told(model, images, OtherModel(model))
    assert not told(model, images, Target())
    assert not told(model, images, OtherModel(Shifted(model)), count=8)
