"""What stored adversarial images are known by, and which models are named."""

import pytest
import torch
from torch import nn

from robusttrain.attacks import ProjectedGradient, Target
from robusttrain.core.errors import UserError
from robusttrain.data import Batch
from robusttrain.evaluation import Scenario
from robusttrain.models.defended import DefendedClassifier
from robusttrain.running.transferring import among
from robusttrain.transfer.crafting import Crafting, Model, Planned


class Turned(nn.Module):
    """Answers as a linear model does, with a gradient that an attribute turns around."""

    def __init__(self, turn):
        super().__init__()
        torch.manual_seed(0)
        self.turn, self.layer = turn, nn.Linear(12, 2)

    def forward(self, images):
        logits = self.layer(images.flatten(1))
        return logits.detach() + self.turn * (logits - logits.detach())


def test_another_code_is_another_maker():
    attacks = {"pgd": Planned(Scenario(ProjectedGradient(), Target()))}
    first, same, other = (
        Crafting({"a": Model(DefendedClassifier(None, Turned(turn)))}, attacks)
        for turn in (-1.0, -1.0, 1.0)
    )
    known = first.fingerprint("pgd", ["a"])
    assert known == same.fingerprint("pgd", ["a"])
    assert known != other.fingerprint("pgd", ["a"])


CONSTANTS = {"shift": 0.0}


class Shifted(Turned):
    """Reads what neither its weights nor its code show."""

    def forward(self, images):
        return super().forward(images - CONSTANTS["shift"] * images.mean((1, 2, 3), keepdim=True))


def test_images_of_a_model_of_other_constants_are_crafted_anew(tmp_path):
    attacks = {"pgd": Planned(Scenario(ProjectedGradient(3, 0.01), Target()))}
    torch.manual_seed(1)
    images, labels = torch.rand(4, 3, 2, 2), torch.zeros(4).long()
    batches = [Batch(images, labels, torch.arange(4))]

    def crafted(shift):
        CONSTANTS.update(shift=shift)
        crafting = Crafting(
            {"a": Model(DefendedClassifier(None, Shifted(1.0)))}, attacks, folder=tmp_path
        )
        outcome = crafting.run("pgd", ["a"], ["a"], batches, 1)
        return outcome.examples, outcome.seconds > 0

    try:
        first, worked = crafted(0.0)
        assert worked
        again, worked = crafted(0.0)
        assert not worked
        assert torch.equal(again, first)
        other, worked = crafted(6.0)
        assert worked
        assert not torch.equal(other, first)
    finally:
        CONSTANTS.update(shift=0.0)


def test_another_data_set_has_images_of_the_same_numbers(tmp_path):
    """They are crafted and kept beside the others."""
    attacks = {"pgd": Planned(Scenario(ProjectedGradient(3, 0.01), Target()))}
    streams = torch.Generator().manual_seed(1)
    one, two = torch.rand(2, 4, 3, 2, 2, generator=streams)

    def crafted(images):
        crafting = Crafting(
            {"a": Model(DefendedClassifier(None, Turned(1.0)))}, attacks, folder=tmp_path
        )
        batches = [Batch(images, torch.zeros(4).long(), torch.arange(4))]
        outcome = crafting.run("pgd", ["a"], ["a"], batches, 1)
        return outcome.examples, outcome.seconds > 0

    (first, worked), (second, also) = crafted(one), crafted(two)
    assert worked
    assert also
    for images, expected in ((one, first), (two, second)):
        again, worked = crafted(images)
        assert not worked
        assert torch.equal(again, expected)
        assert (again - images).abs().max() <= 0.031 + 1e-6


def test_a_model_is_named_once():
    assert among(["a", "b"], ["b", "a"], "--targets") == ["b", "a"]
    with pytest.raises(UserError, match="--targets a: is named twice"):
        among(["a", "b"], ["a", "b", "a"], "--targets")


class Held(nn.Module):
    """Its hook reads what its forward pass has set, on the model that it was made for: a copy
    answers the opposite.
    """

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.layer, self.inside = nn.Linear(12, 2), False
        self.layer.register_forward_hook(lambda module, inputs, out: -out if self.inside else out)

    def forward(self, images):
        self.inside = True
        logits = -self.layer(images.flatten(1))
        self.inside = False
        return logits


def test_a_maker_whose_copy_answers_otherwise_is_differentiated_itself(tmp_path):
    attacks = {"pgd": Planned(Scenario(ProjectedGradient(3, 0.01), Target()))}
    model, said = Held(), []
    images = torch.rand(4, 3, 2, 2, generator=torch.Generator().manual_seed(1))
    batch = Batch(images, model(images).argmax(1), torch.arange(4))
    crafting = Crafting(
        {"a": Model(DefendedClassifier(None, model))}, attacks, tmp_path, report=said.append
    )
    before = crafting.fingerprint("pgd", ["a"])
    crafting.compare_copies(["a"], batch)
    (line,) = said
    assert line.startswith("a: the copy of the model")
    # What was crafted on the copy is not found again.
    assert crafting.fingerprint("pgd", ["a"]) != before
    adversarial = crafting.run("pgd", ["a"], ["a"], [batch], 1).examples

    def margin(points):
        logits = model(points).detach()
        own = logits.gather(1, batch.labels[:, None])
        return (own - logits.gather(1, 1 - batch.labels[:, None])).squeeze(1)

    assert (margin(adversarial) < margin(images)).all()
