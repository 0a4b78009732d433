"""Checkpoints: what training leaves, and how it becomes a model again.

A checkpoint is Lightning's, with one entry of ours, ``robusttrain``: the configuration of model,
defense and data, as plain dicts. It is read with ``weights_only=True``, and its class paths may not
leave trusted packages.
"""

from __future__ import annotations

import json
import os
import shlex
from collections.abc import Sequence
from copy import deepcopy
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import nn

from robusttrain.attacks.sources.surrogates import TO_BE_TRAINED
from robusttrain.config import presets
from robusttrain.config.build import build_defended, is_node
from robusttrain.core.errors import FileError, UserError
from robusttrain.core.typed import command
from robusttrain.models import FullyConvolutional
from robusttrain.models.defended import DefendedClassifier
from robusttrain.models.foreign import adopt_normalisations
from robusttrain.storage import packaged
from robusttrain.storage.reading import read_torch
from robusttrain.storage.weights import fit_state, read_tensors

FORMAT = 1
#: Folders of models that attackers and studies trained: no user's newest run.
NOBODYS = {"surrogates", "studies"}
#: Arguments that say where weights come from: a checkpoint holds them itself.
ELSEWHERE = {"weights": None, "weights_which": None, "pretrained": False}

#: Training options that recipes of earlier versions do not name, with the value that says the same
#: as their absence.
LATER = {
    "batch_norm": "eval",
    "warmup_epochs": 0.0,
    "mixing": "none",
    "mixing_alpha": 1.0,
    "inner_precision": "trainer",
    "weights_which": None,
    "optimizer": "sgd",
    "optimizer_options": None,
    "schedule_options": None,
    "minutes": None,
    "compile": "off",
}


def as_before(node: Any) -> Any:
    """A training configuration without options that are younger than some recipes and were left
    alone.
    """
    if isinstance(node, list):
        return [as_before(item) for item in node]
    if not isinstance(node, dict):
        return node
    return {
        key: as_before(item) for key, item in node.items() if key not in LATER or LATER[key] != item
    }


def recipe_of(
    model: dict[str, Any], defense: dict[str, Any] | None, data: dict[str, Any]
) -> dict[str, Any]:
    """What a checkpoint stores to rebuild the defended classifier, and to find its data again."""
    return {
        "format": FORMAT,
        "model": self_contained(model),
        "defense": self_contained(defense),
        "data": data,
    }


def self_contained(node: Any) -> Any:
    """A configuration that needs no other file: without paths to weights and without downloads."""
    if isinstance(node, list):
        return [self_contained(item) for item in node]
    if not isinstance(node, dict):
        return node
    node = {key: self_contained(value) for key, value in node.items()}
    if is_node(node):
        arguments = node.get("init_args") or {}
        node["init_args"] = {key: ELSEWHERE.get(key, value) for key, value in arguments.items()}
    return node


def read_recipe(path: str | os.PathLike[str]) -> dict[str, Any]:
    """The configuration inside a checkpoint, or in the card of a packaged model.

    Raises:
        UserError: no such file, damaged, needs code to load, or not a checkpoint of this framework.
    """
    if packaged.is_packaged(path):
        return _recipe({"robusttrain": packaged.card(path).recipe}, path)
    try:
        found = os.stat(path)
    except OSError:
        return _recipe(read_torch(path), path)  # which says what is wrong with it
    stamp = (found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns)
    return deepcopy(_recipe_of_file(os.fspath(path), stamp))


def classes_beside(path: str | os.PathLike[str]) -> list[str]:
    """The names of the classes, in the order of their numbers, where a file of weights is a
    checkpoint of ours, or a packaged model; empty where it is not, or cannot be read.
    """
    if Path(path).suffix == ".safetensors":
        return []
    try:
        return read_recipe(path).get("classes") or []
    except UserError:  # whoever loads the weights says what is wrong with the file
        return []


@lru_cache(maxsize=8)
def _recipe_of_file(path: str, stamp: tuple[int, ...]) -> dict[str, Any]:
    """The configuration inside a file, weights and all read once as long as nobody writes to it: a
    command asks for it several times.
    """
    return _recipe(read_torch(path), path)


def _recipe(content: Any, path: str | os.PathLike[str]) -> dict[str, Any]:
    recipe = content.get("robusttrain") if isinstance(content, dict) else None
    if not isinstance(recipe, dict) or not _well_formed(recipe):
        raise UserError(
            f"{path} is no checkpoint of robusttrain; for weights alone name the model: --model"
            f" NAME --weights {shlex.quote(os.fspath(path))}"
        )
    if recipe.get("format") != FORMAT:
        raise UserError(
            f"{path} has checkpoint format {recipe.get('format')!r}; this version reads {FORMAT}"
        )
    return {
        **recipe,
        "model": self_contained(recipe["model"]),
        "defense": self_contained(recipe["defense"]),
    }


def _well_formed(recipe: dict[str, Any]) -> bool:
    """Whether it is what ``recipe_of`` made: plain values, and nodes where nodes belong."""
    try:
        json.dumps(recipe, allow_nan=False)
    except (TypeError, ValueError, RecursionError):
        return False
    if not {"model", "defense", "data"} <= set(recipe):
        return False
    plan = recipe.get("plan") or {}
    if not isinstance(plan, dict) or not all(
        isinstance(plan.get(part) or {}, dict) for part in ("training", "trainer", "robust")
    ):
        return False
    classes = recipe.get("classes", [])
    if not isinstance(classes, list) or not all(isinstance(name, str) for name in classes):
        return False
    return all(
        _is_clean(recipe[name])
        and (is_node(recipe[name]) or (name == "defense" and recipe[name] is None))
        for name in ("model", "defense", "data")
    )


def _is_clean(value: Any) -> bool:
    """Whether every node under ``value`` has a name for a class, and a mapping for its
    arguments.
    """
    if isinstance(value, list):
        return all(_is_clean(item) for item in value)
    if not isinstance(value, dict):
        return True
    if is_node(value):
        named = isinstance(value["class_path"], str) and isinstance(
            value.get("init_args") or {}, dict
        )
        if not named:
            return False
    return all(_is_clean(item) for item in value.values())


def load(
    checkpoint: str | os.PathLike[str],
    trust: Sequence[str] = (),
    recipe: dict[str, Any] | None = None,
) -> DefendedClassifier:
    """The defended classifier of a checkpoint, on the CPU, in evaluation mode.

    Args:
        checkpoint: a file that ``train.py`` left (``last.ckpt`` or ``best.ckpt``); EMA weights,
            where kept, are used. Or the name of a model that comes with the package.
        trust: packages besides robusttrain whose classes the checkpoint may name.
        recipe: overrides the configuration inside (another radius for g, say); weights must still
            fit.

    Raises:
        UserError: no such file, damaged, needs code to load, not a checkpoint, an untrusted class,
            weights that do not fit.
    """
    content = _content(checkpoint)
    own = _recipe(content, checkpoint)
    recipe = recipe or own
    defended = build_defended(recipe["model"], recipe["defense"], ("robusttrain", *trust))
    prefix = "model."
    state = content.get("state_dict")
    if not isinstance(state, dict) or not all(
        isinstance(value, torch.Tensor) for value in state.values()
    ):
        raise UserError(f"{checkpoint} holds no weights")
    state = {
        name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)
    }
    adopt_normalisations(defended, state)
    fit_state(defended, state, Path(checkpoint))
    defended.class_names = tuple(own.get("classes", ()))
    return defended.eval()


def training_seed(checkpoint: str | os.PathLike[str]) -> int | None:
    """The seed that a checkpoint was trained with; None where it does not say."""
    run = read_recipe(checkpoint).get("run")
    seed = run.get("seed") if isinstance(run, dict) else None
    return seed if isinstance(seed, int) else None


def _content(checkpoint: str | os.PathLike[str]) -> Any:
    """The content of a checkpoint; that of a packaged model has the same form."""
    if not packaged.is_packaged(checkpoint):
        return read_torch(checkpoint)
    card = packaged.card(checkpoint)
    tensors = read_tensors(card.weights())
    return {
        "robusttrain": card.recipe,
        "state_dict": {f"model.{name}": tensor for name, tensor in tensors.items()},
    }


def newest(folder: str | os.PathLike[str], fallback: str | None = None) -> Path:
    """The checkpoint of the newest run in ``folder``: its best one if there is one, else its last.

    Args:
        folder: with those of its folders, except what attackers and studies trained.
        fallback: the packaged model to take where there is none.

    Raises:
        UserError: there is none, and no fallback.
    """
    runs = [
        path
        for path in Path(folder).rglob("*.ckpt")
        if not {*path.relative_to(folder).parts} & NOBODYS
    ]
    by_age = sorted(runs, key=lambda path: path.stat().st_mtime)
    if not by_age and fallback is not None:
        return Path(fallback)
    if not by_age:
        raise UserError(
            f"no checkpoint under {folder}: train one ({command('train')} --defense"
            " advtransform), or give --checkpoint FILE (or NAME of a model that comes with the"
            " package: --list), or --model NAME --weights FILE"
        )
    run = by_age[-1].parent
    best = run / "best.ckpt"
    return best if best.is_file() else by_age[-1]


class Files:
    """Reads the models that attack sources and training objectives name: their `Reader`."""

    def checkpoint(self, path: str, trust: Sequence[str]) -> DefendedClassifier:
        _refuse_recipe(path)
        return load(path, trust)

    def stand_in(self, path: str) -> nn.Module:
        _refuse_recipe(path)
        return FullyConvolutional.load(path)


def _refuse_recipe(path: str) -> None:
    """Raise FileError where a path is no file, and the name of a recipe of the attacker's."""
    if packaged.is_packaged(path) or Path(path).exists() or not presets.named("surrogate", path):
        return
    trained = f"{TO_BE_TRAINED}{path}"
    fix = f"there is no such file; did you mean {trained}, which the attacker trains first?"
    raise FileError(path, fix)


#: The reader of files, for ``Source.opened``.
READER = Files()
