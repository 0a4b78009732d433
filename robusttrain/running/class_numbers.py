"""Whether models that an attacker brings number the classes as the data do."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from robusttrain.attacks.sources.surrogates import paths_in
from robusttrain.config.checkpoints import classes_beside
from robusttrain.core.errors import UserError
from robusttrain.data.checking import first_moved
from robusttrain.evaluation.engine import Engine
from robusttrain.models.defended import DefendedClassifier


def refuse_other_numbers(attacks: Mapping[str, Any], engine: Engine, names: Sequence[str]) -> None:
    """Raise UserError where an attack differentiates another model that gives the same classes
    other numbers: it would follow the loss of another class, and the target would look robust.

    Args:
        attacks: configuration nodes by name, which name checkpoints.
        engine: of the attacks at hand; in Python their sources bring models.
        names: of the classes, in the order of the data's numbers.
    """
    brought: list[tuple[str, str, Sequence[str]]] = [
        (name, path, classes_beside(path))
        for name, node in attacks.items()
        for path in paths_in(node)
    ]
    for name, each in engine.scenarios.items():
        models = [source(engine.target) for source in each.source.others]
        brought += [
            (name, "the attacker's model", model.class_names)
            for model in models
            if isinstance(model, DefendedClassifier)
        ]
    for name, model, theirs in brought:
        if (number := first_moved(names, theirs)) is not None:
            raise UserError(
                f"attack {name}: in {model} class {number} is {theirs[number]!r}, and in the"
                f" data set {names[number]!r}: give a model that was trained with the data"
                " set's order of the classes"
            )
