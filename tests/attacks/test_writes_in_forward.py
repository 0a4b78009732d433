"""A model that writes over what its own gradient needs is told in one line, and may be queried."""

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

import robusttrain
from robusttrain.attacks import Linf, ProjectedGradient
from robusttrain.core.errors import UserError

pytestmark = pytest.mark.filterwarnings("ignore")


class Adapts(nn.Module):
    """Its weights shrink with each pass, as those of test-time adaptation change."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(16, 3)

    def forward(self, images):
        answers = self.layer(images.flatten(1))
        with torch.no_grad():
            self.layer.weight.mul_(0.999)
        return answers


class Overwrites(nn.Module):
    """Writes over an activation that the exponential function's derivative needs."""

    def forward(self, images):
        answers = images.flatten(1)[:, :3].exp()
        answers.sub_(1)
        return answers


class Checkpointed(nn.Module):
    """The same behind an activation checkpoint, which runs once more on the way back."""

    def __init__(self):
        super().__init__()
        self.inner = Overwrites()

    def forward(self, images):
        return checkpoint(self.inner, images, use_reentrant=True)


@pytest.mark.parametrize("kind", [Adapts, Overwrites, Checkpointed])
def test_what_cannot_be_differentiated_for_that_is_one_line(kind):
    images, labels = torch.rand(4, 1, 4, 4), torch.tensor([0, 1, 2, 0])
    attack = ProjectedGradient(steps=2, step_size=0.01, threat=Linf(0.05))
    with pytest.raises(UserError, match="changes its own weights or activations") as caught:
        attack(kind(), images, labels)
    assert "--attack square" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_queries_still_attack_it(tmp_path):
    images, labels = torch.rand(6, 1, 4, 4), torch.arange(6) % 3
    told = {"output": tmp_path, "audit": False, "progress": False}
    with pytest.raises(UserError, match="changes its own weights or activations"):
        robusttrain.evaluate(Overwrites(), images, labels, attacks="fgsm", **told)
    found = robusttrain.evaluate(Overwrites(), images, labels, attacks="square-quick", **told)
    assert found.json["attacks"]["square-quick"]["queries_per_image"] > 0
