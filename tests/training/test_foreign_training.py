"""Training models and on labels that none of us made."""

import pytest
import torch
from torch import nn

from robusttrain.attacks import ProjectedGradient
from robusttrain.core.errors import UserError
from robusttrain.data import Batch
from robusttrain.models.defended import DefendedClassifier
from robusttrain.training import Adversarial, RobustTraining

LABELS = torch.tensor([0, 1, 2, 0])


def training(model: nn.Module, classes: int = 3) -> RobustTraining:
    attack = ProjectedGradient(steps=2, step_size=0.01)
    return RobustTraining(DefendedClassifier(None, model), classes, Adversarial(attack)).train()


def batch(images, labels=LABELS) -> Batch:
    return Batch(images, labels, torch.arange(len(images)))


class Remembering(nn.Module):
    """Answers with a dictionary, and keeps features that stand in a graph."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.head = nn.Conv2d(3, 4, 3), nn.Linear(144, 3)

    def forward(self, images):
        self.last = self.body(images)
        return {"logits": self.head(self.last.flatten(1)), "features": self.last}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_model_that_answers_with_more_is_trained_adversarially(dtype, images):
    torch.manual_seed(0)
    module = training(Remembering().to(dtype))
    for step in range(2):  # the second one copies what the first one's pass has left
        losses, logits = module.losses(batch(images()), step, 0)
        losses.mean().backward()
        assert logits.shape == (4, 3)
    assert all(weight.grad.abs().sum() > 0 for weight in module.model.parameters())
    assert module.model.classifier.last.requires_grad


def test_labels_become_class_numbers_before_they_reach_the_device(images):
    module = training(Remembering())
    for dtype in (torch.int32, torch.float32):
        found = module.on_before_batch_transfer(batch(images(), LABELS.to(dtype)), 0)
        assert found.labels.dtype == torch.int64
        assert torch.equal(found.labels, LABELS)
    with pytest.raises(UserError, match=r"0\.\.2.* got 1\.\.3: subtract 1"):
        module.on_before_batch_transfer(batch(images(), LABELS + 1), 0)
    with pytest.raises(UserError, match=r"got -1\.\.1"):
        module.on_before_batch_transfer(batch(images(), LABELS - 1), 0)


def test_answers_of_another_number_of_classes_are_refused_at_the_first_batch(images):
    with pytest.raises(UserError, match="answers with 3 classes, but the data set has 4"):
        training(Remembering(), 4).losses(batch(images()), 0, 0)


def test_a_single_class_is_refused():
    with pytest.raises(UserError, match="num_classes = 1: must be at least 2"):
        training(nn.Flatten(), 1)
