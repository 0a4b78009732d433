"""Trains what `surrogates` found to be missing, as train.py would."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from robusttrain.config import presets
from robusttrain.config.training import read_plan
from robusttrain.core.telling import Telling
from robusttrain.running import reparameterization
from robusttrain.running.surrogates import SEED, Keeper, options_of, whole_h
from robusttrain.running.training import train
from robusttrain.storage.files import writable, write_whole


def train_surrogate(keeper: Keeper, recipe: dict[str, Any], path: Path, telling: Telling) -> None:
    """Train the attacker's model of a recipe, to be kept as ``path``; an unfinished training goes
    on.
    """
    folder = writable(keeper.folder, "--checkpoints")
    if "h" in recipe:
        reparameterization.train(
            keeper.target, keeper.data, whole_h(recipe), keeper.trainer, SEED, path, telling.say
        )
        return
    options = options_of(recipe, keeper.node, keeper.trainer)
    if "defense_of_target" in recipe:
        options["defense"] = keeper.defense_with(recipe["defense_of_target"])
    run = path.stem
    if "f_b_epochs" in recipe:
        f_b = presets.read("training", options.get("f_b_training", "f_b"))
        f_b["trainer"] = {**f_b.get("trainer", {}), "max_epochs": recipe["f_b_epochs"]}
        options["f_b_training"] = str(folder / f"{run}-f_b.yaml")
        write_whole(Path(options["f_b_training"]), yaml.safe_dump(f_b).encode())
    file = folder / f"{run}.yaml"
    write_whole(file, yaml.safe_dump(options).encode())
    arguments = [f"--config={file}", f"--checkpoints={folder}", f"--logs={folder / 'logs'}"]
    arguments += [f"--name={run}", f"--seed={SEED}", "--robust.every=0", "--pictures.images=0"]
    unfinished = (folder / run).glob("version_*/last.ckpt")
    train(read_plan([*arguments, "--ckpt_path=last"] if any(unfinished) else arguments), telling)
    best = max((folder / run).glob("version_*/best.ckpt"), key=lambda file: file.stat().st_mtime)
    # Under its name only when training is over: a name that is there stands for a finished model.
    write_whole(path, best.read_bytes())
