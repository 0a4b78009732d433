"""A defense is put before the network of a checkpoint that has none."""

import pytest
import torch
from safetensors.torch import save_file

import robusttrain
from robusttrain.config.evaluation import read_plan
from robusttrain.core.errors import UserError
from robusttrain.core.rng import Rng
from robusttrain.running.evaluating import build_parts

OWN = """
from robusttrain.defenses import Defense


class Quantise(Defense):
    def transform(self, images, rng):
        return (8 * images).round() / 8
"""


def target(tmp_path, *words):
    common = ["--attack", "pgd-quick", "--images", "4", "--output", str(tmp_path / "out")]
    plan = read_plan(["--checkpoint", "digits-standard", *words, *common])
    assert plan.checkpoint == "digits-standard"
    return build_parts(plan, lambda line: None)[:2]


def test_one_of_ones_own_and_its_network(tmp_path):
    file = tmp_path / "mydefense.py"
    file.write_text(OWN)
    found, name = target(tmp_path, "--defense", f"{file}:Quantise")
    assert type(found.defense).__name__ == "Quantise"
    assert name.startswith("digits-standard")
    bare, x = robusttrain.load("digits-standard"), torch.rand(3, 1, 16, 16)
    assert not found.training
    assert torch.equal(found(x), bare((8 * x).round() / 8))
    assert not torch.equal(found(x), bare(x))


def test_one_of_a_preset_with_its_options(tmp_path):
    found, name = target(tmp_path, "--defense", "noise", "--defense.sigma", "0.2")
    assert found.random
    assert found.defense.sigma == 0.2
    # Its figures are not those of the network alone.
    assert name == f"{target(tmp_path)[1]} behind GaussianNoise"


def test_the_network_inside_of_a_defense_has_its_own_weights(tmp_path):
    """They are none of the checkpoint's: a file names them, or the command says that it has to."""
    with pytest.raises(UserError, match=r"^--defense: no weights for f_b: .* --defense.weights"):
        target(tmp_path, "--defense", "advtransform", "--checkpoints", str(tmp_path))
    f_b = robusttrain.load("digits-adversarial").classifier
    file = tmp_path / "f_b.safetensors"
    save_file({name: values.contiguous() for name, values in f_b.state_dict().items()}, file)
    model = ["--defense.model", "robusttrain.models.CifarResNet", "--defense.model.blocks", "1"]
    model += ["--defense.model.widths", "[16, 32, 64]"]
    found, _ = target(tmp_path, "--defense", "advtransform", *model, "--defense.weights", str(file))
    x = torch.rand(2, 1, 16, 16)
    assert torch.equal(found.defense.f_b(x), f_b(x))
    bare = robusttrain.load("digits-standard")
    streams = Rng.for_images(0, torch.arange(2))
    inside = found.defense(x, streams.fold("defense"))
    assert inside.shape == x.shape
    assert torch.equal(found.classifier(x), bare(x))


def test_none_is_none(tmp_path):
    found, name = target(tmp_path, "--defense", "none")
    assert found.defense is None
    assert "behind" not in name


def test_values_of_its_own_defense_that_were_changed_are_named():
    common = ["--checkpoint", "digits-g", "--attack", "pgd-quick", "--images", "4"]
    names = [
        build_parts(read_plan([*common, *words]), lambda line: None)[1]
        for words in ([], ["--defense.radius", "0.1"], ["--defense.random_start", "false"])
    ]
    assert names[2] == f"{names[0]} with defense.random_start False"
    assert names[1] == f"{names[0]} with defense.radius 0.1"
    assert "defense" not in names[0]


def test_one_that_has_a_defense_is_told_to_change_it(tmp_path):
    with pytest.raises(UserError, match=r"has its own; change its values \(--defense"):
        read_plan(["--checkpoint", "digits-g", "--defense", "jpeg", "--attack", "pgd-quick"])


def test_a_value_of_a_defense_that_is_not_there_is_refused():
    told = r"^--defense.sigma: digits-standard has no defense .* with --defense NAME$"
    with pytest.raises(UserError, match=told):
        read_plan(["--checkpoint", "digits-standard", "--defense.sigma", "0.1"])
