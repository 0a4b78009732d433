"""Models by name, for commands that take several: presets, YAML files, checkpoints, models that
come with the package, and what timm has pretrained.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from robusttrain.config import presets
from robusttrain.config.build import build_defended, check_pretrained, fit_to_data, other_pictures
from robusttrain.config.checkpoints import classes_beside, load, read_recipe
from robusttrain.config.origins import trained_node
from robusttrain.core.errors import UserError, under
from robusttrain.data import ImageData
from robusttrain.data.checking import first_moved
from robusttrain.data.notes import note
from robusttrain.models.foreign import load_weights
from robusttrain.storage import packaged
from robusttrain.transfer import Model


def named_models(
    specifications: Sequence[str], data: ImageData, trust: Sequence[str], device: torch.device
) -> dict[str, Model]:
    """The models that ``--models`` names, by short names.

    Raises:
        UserError: a name that is no model, one without weights, for other classes or the same ones
            in another order, or two of the same name.
    """
    by_name: dict[str, Model] = {}
    numbered: tuple[str, list[str]] | None = None
    for specification in specifications:
        name = short_name(specification)
        if name in by_name:
            raise UserError(
                f"--models {specification}: there is another model called {name}: rename one of the"
                " files"
            )
        kept = packaged.is_packaged(specification) or specification.endswith(".ckpt")
        recipe = read_recipe(specification) if kept else None
        if classes := (recipe or {}).get("classes") or _classes_of_weights(specification, kept):
            _refuse_other_numbers(specification, classes, numbered)
            if numbered is None:
                numbered = specification, classes
                data.number_as(classes)
        by_name[name] = _model(specification, data, trust, recipe)
        by_name[name].defended.eval().to(device)
    return by_name


def _weights_file(specification: str, weights: str) -> Path:
    """The file that a YAML names, as its author means it: beside the YAML, or where the command is
    given.
    """
    beside = Path(specification).parent / weights
    return beside if beside.is_file() else Path(weights)


def _classes_of_weights(specification: str, kept: bool) -> list[str]:
    """The classes of a checkpoint from which a YAML takes the weights."""
    if kept or trained_node(specification) is not None:
        return []
    weights = presets.read("model", specification, "--models").get("weights")
    return classes_beside(_weights_file(specification, weights)) if weights else []


def _refuse_other_numbers(
    specification: str, classes: Sequence[str], numbered: tuple[str, list[str]] | None
) -> None:
    """Raise UserError where a checkpoint gives the classes of another one other numbers: no data
    set fits both.
    """
    if numbered is None:
        return
    other, theirs = numbered
    if (number := first_moved(classes, theirs)) is not None:
        raise UserError(
            f"--models {specification}: has {classes[number]!r} where {other} has"
            f" {theirs[number]!r} among its classes:"
            " give checkpoints that were trained with one order of the classes"
        )


def short_name(specification: str) -> str:
    """What a model is called in tables."""
    path = Path(specification)
    if path.suffix == ".ckpt":  # train.py's folders: NAME/version_N/best.ckpt
        parents = [part for part in path.parent.parts if not part.startswith("version_")]
        return parents[-1] if parents else path.stem
    return path.stem if path.suffix in (".yaml", ".yml") else re.sub(r"^\w+:", "", specification)


def _model(
    specification: str, data: ImageData, trust: Sequence[str], recipe: dict[str, Any] | None
) -> Model:
    facts = data.facts()
    if recipe is not None:
        classes = (recipe["model"].get("init_args") or {}).get("num_classes", facts.num_classes)
        if classes != facts.num_classes:
            raise UserError(
                f"--models {specification}: has {classes} classes, the data set {facts.num_classes}"
            )
        about = {"model": recipe["model"], "defense": recipe["defense"]}
        if packaged.is_packaged(specification):
            about["packaged"] = packaged.card(specification).label
        return Model(load(specification, trust), about)
    if (zoo := trained_node(specification)) is not None:
        node: dict[str, Any] = {"model": zoo}
    else:
        node = presets.read("model", specification, "--models")
    if "model" not in node:
        raise UserError(
            f"--models {specification}: the file must hold a class path and arguments under 'model'"
        )
    if unknown := node.keys() - {"model", "defense", "weights", "weights_which"}:
        reason = ", ".join(sorted(unknown))
        raise UserError(
            f"--models {specification}: holds {reason}; known are model, defense, weights and"
            " weights_which"
        )
    with under(f"--models {specification}"):
        fit_to_data(node["model"], facts, "model")
        fit_to_data(node.get("defense"), facts, "defense")
        defended = build_defended(node["model"], node.get("defense"))
    if node.get("weights") is not None:
        load_weights(
            defended.classifier,
            _weights_file(specification, node["weights"]),
            node.get("weights_which"),
            f"--models {specification}: weights",
        )
    else:
        try:
            check_pretrained(defended.classifier, facts, f"--models {specification}")
        except UserError as error:
            reason = str(error).replace("--weights FILE", "a YAML file of model and weights")
            raise UserError(reason) from error
        if others := other_pictures(
            defended.classifier, facts.image_size, data.preparation, f"--models {specification}"
        ):
            note(data.notes, others)
    return Model(defended, {key: node[key] for key in ("model", "defense") if node.get(key)})
