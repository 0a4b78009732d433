"""Every value inside a training preset can be overridden on the command line."""

import pytest
import yaml

from robusttrain.config import presets, purifiers, training
from robusttrain.config.command_line import plain, read

PRESETS = {name: presets.read("training", name) for name in presets.names("training")}
#: Those of classifiers, and of networks that purify images.
TRAINING = [name for name, content in PRESETS.items() if "training" in content]
PURIFIERS = [name for name, content in PRESETS.items() if "purifier" in content]
#: What a preset leaves to the user.
NEEDED = {"ensemble-adversarial": ["--training.objective.models", "[a.ckpt]"]}


def configured(name, *overrides):
    arguments = ["--training", name, *NEEDED.get(name, []), *overrides]
    return plain(read(training.parser(), arguments, training.KINDS, training.DEFAULTS).training)


def leaves(node, path):
    """Option and value of everything that a preset says."""
    for key, value in node.items():
        inside = path if key == "init_args" else f"{path}.{key}"
        if isinstance(value, dict):
            yield from leaves(value, inside)
        elif key != "class_path" and value is not None:
            yield inside, value


def overriding(node, path):
    """The command line that says all of a node's values once more."""
    return [
        text
        for option, value in leaves(node, path)
        for text in (option, yaml.safe_dump(value, default_flow_style=True).split("\n")[0])
        if option != "--training.objective.models"
    ]


@pytest.mark.parametrize("name", PURIFIERS)
def test_overrides_of_purifiers_change_nothing(name):
    own = overriding(PRESETS[name]["purifier"], "--purifier")
    assert own
    found = [purifiers.configure(["--training", name, *more]) for more in ([], own)]
    assert plain(found[0]) == plain(found[1])


@pytest.mark.parametrize("name", TRAINING)
def test_overrides_with_the_presets_own_values_change_nothing(name):
    """What jsonargparse cannot type it would take for a list, or for text."""
    overrides = overriding(PRESETS[name]["training"], "--training")
    assert configured(name, *overrides) == configured(name)


def test_an_inner_attack_by_its_preset_wherever_it_stands():
    attack, objective = (
        "--training.objective.attack",
        ["--training.objective", "robusttrain.training.MART"],
    )
    expected = presets.read("attack", "bpda-i")
    for line in (
        [*objective, attack, "bpda-i", f"{attack}.steps", "3"],
        [f"{attack}.steps=3", f"{attack}=bpda-i", *objective],
    ):
        found = configured("standard", *line)["objective"]
        assert found["class_path"] == "robusttrain.training.MART"
        assert found["init_args"]["source"]["class_path"] == expected["source"]["class_path"]
        inner = found["init_args"]["attack"]["init_args"]
        assert inner["steps"] == 3
        assert inner["step_size"] == expected["init_args"]["step_size"]
    own = configured(
        "adversarial", attack, "bpda-i", "--training.objective.source", "robusttrain.attacks.Target"
    )
    assert own["objective"]["init_args"]["source"]["class_path"] == "robusttrain.attacks.Target"
    around = configured("adversarial-awp", "--training.objective.objective.attack", "apgd-ce")
    assert around["objective"]["init_args"]["objective"]["init_args"]["attack"][
        "class_path"
    ].endswith("APGD")


@pytest.mark.parametrize(
    "name", ["logit-pairing", "consistency", "ensemble-adversarial", "mart", "trades"]
)
def test_the_inner_attack(name):
    attack = "--training.objective.attack"
    found = configured(
        name, attack, "robusttrain.attacks.ProjectedGradient", f"{attack}.steps", "3"
    )
    assert found["objective"]["init_args"]["attack"]["init_args"]["steps"] == 3


def test_a_whole_number_of_batches_stays_one():
    """1 is one batch, 1.0 all of them, whichever union of int and float typing has met first."""
    typed = ["--trainer.limit_train_batches", "1", "--trainer.limit_val_batches", "1.0"]
    found = read(training.parser(), typed, training.KINDS, training.DEFAULTS).trainer
    assert (type(found.limit_train_batches), type(found.limit_val_batches)) == (int, float)
