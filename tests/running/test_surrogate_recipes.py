"""What cannot be meant in the recipe of an attacker's model is refused before it is trained."""

import pytest

from robusttrain.core.errors import UserError
from robusttrain.running.surrogates import Keeper


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("trainer:", r"surrogate mine: trainer = None: write trainer: \{max_epochs: 20\}"),
        ("trainer: {max_epochs: many}", "surrogate mine: trainer = .*whole number"),
        ("data: cifar10", "surrogate mine: data has no effect, since the attacker trains on"),
        ("seed: 3", "surrogate mine: seed has no effect"),
    ],
)
def test_what_cannot_be_meant_is_refused(text, told, tmp_path, monkeypatch):
    (tmp_path / "configs" / "surrogate").mkdir(parents=True)
    (tmp_path / "configs" / "surrogate" / "mine.yaml").write_text(f"model: mlp\n{text}\n")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=told):
        Keeper.recipe(None, "mine")


def test_a_name_that_there_is_not_is_none_of_an_option():
    with pytest.raises(UserError, match="^surrogate standart: no such preset; .*standard"):
        Keeper.recipe(None, "standart")
