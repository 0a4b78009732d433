"""Advice in messages can be typed: every preset and option that it names is there."""

import ast
import re
from pathlib import Path

import pytest

from robusttrain import attacks
from robusttrain.attacks import ClassifierOnly, FewerSteps, FixedRandomness, IdentityBackward
from robusttrain.config import presets
from robusttrain.core.errors import UserError
from robusttrain.defenses import RandomResizePad
from robusttrain.models.defended import DefendedClassifier

PACKAGE = Path(attacks.__file__).parents[1]
#: What messages call presets by.
NAMED = re.compile(r"--(attack|suite|defense|training|model|data) ([a-z][\w-]*)")
#: Words that stand where a name does.
WORDS = {"is", "names", "and", "or", "changes", "in", "exclude", "as", "mynet", "myfolder"}


def messages():
    """Texts of the package that are no docstrings."""
    for path in PACKAGE.rglob("*.py"):
        tree = ast.parse(path.read_text())
        docstrings = {
            id(node.value)
            for node in ast.walk(tree)
            if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
        }
        parts = {
            id(part): node
            for node in ast.walk(tree)
            if isinstance(node, ast.JoinedStr)
            for part in node.values
        }
        for node in ast.walk(tree):
            if isinstance(node, ast.JoinedStr):
                texts = [
                    part.value if isinstance(part, ast.Constant) else "{}" for part in node.values
                ]
                yield path, "".join(texts)
            elif (
                isinstance(node, ast.Constant)
                and isinstance(node.value, str)
                and not {id(node)} & {*docstrings, *parts}
            ):
                yield path, node.value


def test_presets_that_advice_names_are_there():
    named = {(kind, name) for _, text in messages() for kind, name in NAMED.findall(text)}
    assert len(named) > 20
    missing = {
        (kind, name)
        for kind, name in named
        if name not in presets.names(kind) and name not in WORDS
    }
    assert not missing


def test_classes_are_named_beside_what_can_be_typed():
    """ "use Target" is no option: what a message advises behind "in Python" stands before it as an
    option, too.
    """
    parts = "|".join(name for name in attacks.__all__ if re.fullmatch(r"[A-Z]\w*[a-z]\w*", name))
    advice = re.compile(rf"\b(?:use|try|take|with|through|rule|objective) (?:{parts})\b")
    package = re.compile(r"\b(?:use|try|e\.g\.|for) robusttrain\.\w+\.[A-Z]")
    for path, text in messages():
        assert not package.search(text), f"{path}: {text}"
        assert not advice.search(text), f"{path}: {text}"


@pytest.mark.parametrize("source", [IdentityBackward(), ClassifierOnly(), FewerSteps()])
def test_without_a_defense_the_preset_that_needs_none_is_named(source, linear):
    with pytest.raises(UserError, match="--attack pgd"):
        source(DefendedClassifier(None, linear()))


def test_where_sizes_change_the_preset_for_random_models_is_named(images, linear):
    target = DefendedClassifier(RandomResizePad(low=9, canvas=12), linear(side=12))
    with pytest.raises(UserError, match="--attack eot"):
        IdentityBackward()(target)(images())
    with pytest.raises(UserError, match="--attack eot"):
        FewerSteps()(target)
    with pytest.raises(UserError, match="--attack pgd"):
        FixedRandomness()(DefendedClassifier(None, linear()))
