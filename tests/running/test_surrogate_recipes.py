"""What cannot be meant in the recipe of an attacker's model is refused before it is trained."""

import pytest
from torch import nn

from robusttrain.attacks import Checkpoint, OwnSurrogate
from robusttrain.config.checkpoints import READER
from robusttrain.core.errors import UserError
from robusttrain.defenses import GaussianNoise
from robusttrain.models.defended import DefendedClassifier
from robusttrain.running.surrogates import Keeper, whole_h


@pytest.fixture
def recipe(tmp_path, monkeypatch):
    """Writes the recipe "mine" of the folder where everything runs."""
    folder = tmp_path / "configs" / "surrogate"
    folder.mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    return (folder / "mine.yaml").write_text


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("trainer:", r"surrogate mine: trainer = None: write trainer: \{max_epochs: 20\}"),
        ("trainer: {max_epochs: many}", "surrogate mine: trainer = .*whole number"),
        ("data: cifar10", "surrogate mine: data has no effect, since the attacker trains on"),
        ("seed: 3", "surrogate mine: seed has no effect"),
    ],
)
def test_what_cannot_be_meant_is_refused(text, told, recipe):
    recipe(f"model: mlp\n{text}\n")
    with pytest.raises(UserError, match=told):
        Keeper.recipe(None, "mine")


@pytest.mark.parametrize(
    ("text", "told"),
    [
        (
            "model: mlp\nmdel: mlp",
            "^surrogate mine: mdel: there is no such option; did you mean mod",
        ),
        ("training: {momentum: fast}", "^surrogate mine: --training.momentum: fast: must be a num"),
        ("h: {width: 4, dpth: 8}", "^surrogate mine: .*dpth"),
        ("h: {width: wide}", "^surrogate mine: --h.width: wide: must be a whole number"),
        ("h: {width: 4}\nmodel: mlp", "^surrogate mine: model: there is no such option"),
    ],
)
def test_a_key_that_there_is_not_is_one_of_the_recipe(text, told, tmp_path, recipe):
    """Before any other recipe is trained; the line named an option that nobody had typed."""
    recipe(f"{text}\n")
    data = {"class_path": "robusttrain.data.Digits", "init_args": {"image_size": 8}}
    defended = DefendedClassifier(GaussianNoise(0.1), nn.Flatten())
    keeper, trained = Keeper(tmp_path, defended, data, {}, None), []
    with pytest.raises(UserError, match=told):
        keeper.provide(["standard", "mine"], lambda *those: trained.append(those))
    assert not trained


def test_what_a_recipe_of_h_leaves_out_is_as_in_train_py():
    assert whole_h({"h": {"width": 4}}) == {
        "h": {"width": 4, "depth": 8, "learning_rate": 0.003, "weight_decay": 0.0001},
        "trainer": {"max_epochs": 10},
    }


@pytest.mark.parametrize("source", [Checkpoint("mine"), OwnSurrogate("mine")])
def test_the_name_of_a_recipe_in_place_of_a_file(source, tmp_path, monkeypatch):
    (tmp_path / "configs" / "surrogate").mkdir(parents=True)
    (tmp_path / "configs" / "surrogate" / "mine.yaml").write_text("model: mlp\n")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match="mine: there is no such file; did you mean surrogate:mine"):
        source.opened(READER)


def test_a_name_that_there_is_not_is_none_of_an_option():
    with pytest.raises(UserError, match="^surrogate standart: no such preset; .*standard"):
        Keeper.recipe(None, "standart")
