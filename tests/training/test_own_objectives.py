"""What an objective of somebody's own returns is looked at before the weights follow it."""

from dataclasses import dataclass, field

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from robusttrain.core.errors import UserError
from robusttrain.data import Batch
from robusttrain.models.defended import DefendedClassifier
from robusttrain.training import AWP, RobustTraining, TrainingObjective


@dataclass(frozen=True)
class Returning(TrainingObjective):
    """Gives what ``make`` makes of logits and labels."""

    make: object = field(default=None)

    def losses(self, model, images, crafted, labels, rng):
        return self.make(model(images, rng), labels)


def each(logits, labels):
    return F.cross_entropy(logits, labels, reduction="none")


def step(objective: TrainingObjective):
    """The first step on 6 images of 3 classes."""
    torch.manual_seed(0)
    model = DefendedClassifier(None, nn.Sequential(nn.Flatten(), nn.Linear(4, 3)))
    images = torch.rand(6, 1, 2, 2)
    batch = Batch(images, torch.arange(6) % 3, torch.arange(6))
    return RobustTraining(model, 3, objective).losses(batch, 0, 0)


WRONG = {
    "mean": (lambda z, y: (F.cross_entropy(z, y), z), r"reduction='none'.* returned \(\)"),
    "sum": (lambda z, y: (each(z, y).sum(), z), r"reduction='none'.* returned \(\)"),
    "column": (lambda z, y: (each(z, y)[:, None], z), r"6 images it returned \(6, 1\)"),
    "a loss a class": (lambda z, y: (z, z), r"6 images it returned \(6, 3\) and \(6, 3\)"),
    "twice the images": (
        lambda z, y: (each(z, y).repeat(2), z.repeat(2, 1)),
        r"returned \(12,\) and \(12, 3\)",
    ),
    "classes": (lambda z, y: (each(z, y), z.argmax(1)), r"returned \(6,\) and \(6,\)"),
    "losses alone": (lambda z, y: each(z, y), "returned a Tensor"),
    "three": (lambda z, y: (each(z, y), z, y), "returned a tuple of 3"),
    "nothing": (lambda z, y: None, "returned a NoneType"),
    "detached": (lambda z, y: (each(z, y).detach(), z), "do not depend differentiably"),
}


@pytest.mark.parametrize("kind", WRONG)
def test_what_is_no_loss_an_image_with_logits_is_refused(kind):
    make, said = WRONG[kind]
    with pytest.raises(UserError, match=said) as error:
        step(Returning(make))
    assert "Returning" in str(error.value)
    assert "\n" not in str(error.value)


def test_a_wrapper_names_the_objective_inside():
    with pytest.raises(UserError, match=r"Returning\.losses must return"):
        step(AWP(Returning(lambda z, y: (F.cross_entropy(z, y), z))))


def test_losses_of_each_image_and_logits_pass():
    losses, logits = step(Returning(lambda z, y: (each(z, y), z)))
    assert losses.shape == (6,)
    assert logits.shape == (6, 3)


def test_without_gradients_nothing_is_asked_of_them():
    with torch.no_grad():
        losses, _ = step(Returning(lambda z, y: (each(z, y), z)))
    assert not losses.requires_grad
