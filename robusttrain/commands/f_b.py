"""The f_b of an adversarial transformation: found where it was kept, or trained first."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import pytorch_lightning as pl

from robusttrain import presets
from robusttrain.build import build, is_node
from robusttrain.checkpoints import as_before
from robusttrain.cli import console, new_parser, plain, read, trainer_from
from robusttrain.data import ImageData
from robusttrain.defended import DefendedClassifier
from robusttrain.errors import UserError
from robusttrain.training import RobustTraining
from robusttrain.weights import save_tensors

TRANSFORM = "AdversarialTransform"


def transforms(node: Any) -> list[dict[str, Any]]:
    """The arguments of every adversarial transformation under a configuration node that has no weights for its f_b."""
    if isinstance(node, list):
        return [found for item in node for found in transforms(item)]
    if not is_node(node):
        return []
    arguments = node.setdefault("init_args", {})
    if node["class_path"].rpartition(".")[2] == TRANSFORM:
        return [] if arguments.get("weights") else [arguments]
    return [found for value in arguments.values() for found in transforms(value)]


def provide_f_b(
    defense: dict[str, Any],
    data: ImageData,
    preset: str,
    folder: Path,
    trainer: dict[str, Any],
    seed: int,
    train: bool = True,
) -> None:
    """Fill in weights for every f_b in ``defense`` that has none, in place; train what was never trained.

    Args:
        defense: configuration node.
        data: the data set that an f_b is trained on.
        preset: training preset for it.
        folder: where trained ones are kept.
        trainer: ``--trainer`` options of the main run: accelerator and precision are taken over.
        seed: of the training.
        train: whether to train; False raises instead.

    Raises:
        UserError: nothing kept, and ``train`` is False.
    """
    for arguments in transforms(defense):
        config = _training(preset)
        about = {
            "model": arguments["model"],
            "data": [
                type(data).__name__,
                str(data.root.resolve()),
                *data.facts(),
                data.validation,
                data.crop,
                data.flip,
                data.seed,
            ],
            "training": as_before(config),
            "seed": seed,
        }
        key = hashlib.sha256(json.dumps(about, sort_keys=True).encode()).hexdigest()[:8]
        path = folder / f"{data.name}-{key}.safetensors"
        if path.is_file():
            console.print(f"f_b: taking the one trained before, {path}", soft_wrap=True)
        elif train:
            console.print(f"f_b: none at hand; training one first ({preset}), to be kept as {path}", soft_wrap=True)
            _train(arguments["model"], data, config, trainer, seed, path)
        else:
            raise UserError("--defense: no weights for f_b: name them with --defense.weights FILE")
        arguments["weights"] = str(path)


def _training(preset: str) -> dict[str, Any]:
    """The training preset, checked, with all defaults."""
    parser = new_parser()
    parser.add_class_arguments(RobustTraining, "training", skip={"model", "num_classes", "seed"}, instantiate=False)
    parser.add_argument("--trainer.max_epochs", type=int, default=20)
    parsed = read(parser, [f"--config={presets.find('training', preset)}"], (), {})
    return {"training": plain(parsed.training), "epochs": parsed.trainer.max_epochs}


def _train(
    model: dict[str, Any], data: ImageData, config: dict[str, Any], trainer: dict[str, Any], seed: int, path: Path
) -> None:
    pl.seed_everything(seed, verbose=False)
    classes = data.facts().num_classes
    f_b = build(model, "defense.model")
    training = build(
        {
            "class_path": "robusttrain.training.RobustTraining",
            "init_args": {**config["training"], "seed": seed},
        },
        "f_b_training",
        given={"model": DefendedClassifier(None, f_b), "num_classes": classes},
    )
    taken: dict[str, Any] = {
        name: trainer[name] for name in ("accelerator", "precision", "enable_progress_bar") if name in trainer
    }
    data.prepare_data()
    runner = trainer_from(
        {**taken, "devices": 1, "max_epochs": config["epochs"], "enable_model_summary": False},
        logger=False,
        enable_checkpointing=False,
        num_sanity_val_steps=0,
    )
    runner.fit(training, datamodule=data)
    metrics = {key: round(float(value), 4) for key, value in runner.callback_metrics.items()}
    console.print(f"f_b: {metrics}", soft_wrap=True)
    save_tensors(f_b, path, {"training": json.dumps(config), "metrics": json.dumps(metrics)})
