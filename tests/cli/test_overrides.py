"""Every value inside a training preset can be overridden on the command line."""

import pytest
import yaml

from robusttrain import presets
from robusttrain.cli import plain, read
from robusttrain.commands import train

TRAINING = [name for name in presets.names("training") if name != "reparameterization"]
#: What a preset leaves to the user.
NEEDED = {"ensemble-adversarial": ["--training.objective.models", "[a.ckpt]"]}


def configured(name, *overrides):
    arguments = ["--training", name, *NEEDED.get(name, []), *overrides]
    return plain(read(train.parser(), arguments, train.KINDS, train.DEFAULTS).training)


def leaves(node, path="--training"):
    """Option and value of everything that a preset says."""
    for key, value in node.items():
        inside = path if key == "init_args" else f"{path}.{key}"
        if isinstance(value, dict):
            yield from leaves(value, inside)
        elif key != "class_path" and value is not None:
            yield inside, value


@pytest.mark.parametrize("name", TRAINING)
def test_overrides_with_the_presets_own_values_change_nothing(name):
    """What jsonargparse cannot type it would take for a list, or for text."""
    overrides = [
        text
        for option, value in leaves(presets.read("training", name)["training"])
        for text in (option, yaml.safe_dump(value, default_flow_style=True).split("\n")[0])
        if option != "--training.objective.models"
    ]
    assert configured(name, *overrides) == configured(name)


@pytest.mark.parametrize("name", ["logit-pairing", "consistency", "ensemble-adversarial", "mart", "trades"])
def test_the_inner_attack(name):
    attack = "--training.objective.attack"
    found = configured(name, attack, "robusttrain.attacks.ProjectedGradient", f"{attack}.steps", "3")
    assert found["objective"]["init_args"]["attack"]["init_args"]["steps"] == 3
