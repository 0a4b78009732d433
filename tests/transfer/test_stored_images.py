"""What stored adversarial images are known by, and which models are named."""

import pytest
import torch
from torch import nn

from robusttrain.attacks import ProjectedGradient, Target
from robusttrain.core.errors import UserError
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


def test_a_model_is_named_once():
    assert among(["a", "b"], ["b", "a"], "--targets") == ["b", "a"]
    with pytest.raises(UserError, match="--targets a: is named twice"):
        among(["a", "b"], ["a", "b", "a"], "--targets")
