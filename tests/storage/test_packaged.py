"""Models that come with the package: found by name, refused by name, and what their cards say."""

import hashlib

import pytest
import torch

import robusttrain
from robusttrain.config import presets
from robusttrain.config.checkpoints import read_recipe
from robusttrain.core.errors import UserError
from robusttrain.models import CifarResNet
from robusttrain.models.foreign import load_weights
from robusttrain.storage import packaged
from robusttrain.storage.files import hash_of_weights

LARGEST = 3_000_000
NAMES = [*packaged.names()]


def test_the_three_of_the_digits_are_there():
    assert {"digits-standard", "digits-adversarial", packaged.DEFAULT} <= {*NAMES}
    digits = [packaged.card(name) for name in NAMES if name.startswith("digits-")]
    assert sum(card.weights().stat().st_size for card in digits) < 700_000


@pytest.mark.parametrize("name", NAMES)
def test_card_and_file_agree(name):
    card = packaged.card(name)
    file, content = card.weights(), card.content
    assert hashlib.sha256(file.read_bytes()).hexdigest() == content["sha256"]
    assert file.stat().st_size == content["bytes"] <= LARGEST
    # Strictly: every tensor has its place, and nothing else is there.
    defended = robusttrain.load(name)
    assert hash_of_weights(defended) == content["figures"]["weights"]
    assert not defended.training
    assert name in content["commands"]["evaluate"]
    assert content["training"]["max_epochs"] > 0
    assert presets.about(card.path).startswith(content["about"])
    low, high = content["figures"]["worst_case"]["ci95"]
    assert low <= content["figures"]["worst_case"]["robust_accuracy"] <= high


def test_no_preset_of_a_network_has_such_a_name():
    assert not {*NAMES} & {*presets.names("model")}


def test_g_comes_with_its_f_b():
    defended = robusttrain.load("digits-g")
    assert defended.defense.has_f_b
    assert defended.random
    assert read_recipe("digits-g")["defense"]["init_args"]["weights"] is None
    assert any(value.abs().sum() > 0 for value in defended.defense.f_b.state_dict().values())


def test_a_name_stands_for_a_file_of_weights():
    network = CifarResNet(in_channels=1, widths=(16, 32, 64), blocks=1)
    load_weights(network, "digits-adversarial")
    expected = robusttrain.load("digits-adversarial").classifier.state_dict()
    assert all(torch.equal(value, expected[name]) for name, value in network.state_dict().items())


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("digits-gg", "there is no such file; did you mean digits-g, a model that comes with"),
        ("digits_standard", "did you mean digits-standard"),
        ("unlike-all", "no such model in the package, which has cifar10-jpeg-adversarial, digits-"),
    ],
)
def test_a_wrong_name_gets_the_nearest_one(name, said):
    for call in (robusttrain.load, read_recipe):
        with pytest.raises(UserError) as caught:
            call(name)
        assert said in str(caught.value)


def test_a_path_gets_no_advice_about_names():
    with pytest.raises(UserError) as caught:
        robusttrain.load("digits-g.ckpt")
    assert str(caught.value) == "digits-g.ckpt: there is no such file"


def test_a_file_of_that_name_comes_first(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert packaged.is_packaged("digits-g")
    (tmp_path / "digits-g").write_text("mine")
    assert not packaged.is_packaged("digits-g")


def test_other_weights_than_the_cards_are_refused(tmp_path, monkeypatch):
    for suffix in (".yaml", ".safetensors"):
        source = packaged.FOLDER / f"digits-standard{suffix}"
        (tmp_path / source.name).write_bytes(source.read_bytes())
    monkeypatch.setattr(packaged, "FOLDER", tmp_path)
    robusttrain.load("digits-standard")
    weights = tmp_path / "digits-standard.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    with pytest.raises(UserError, match="is not the file that its card describes"):
        robusttrain.load("digits-standard")
