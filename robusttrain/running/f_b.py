"""The f_b of an adversarial transformation: found where it was kept, or trained first."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import torch

from robusttrain.config import presets
from robusttrain.config.build import build, is_node
from robusttrain.config.checkpoints import as_before
from robusttrain.config.command_line import new_parser, plain, read
from robusttrain.config.trainer import PRECISIONS, trainer_from
from robusttrain.config.training import build_training
from robusttrain.core.errors import UserError
from robusttrain.core.telling import Say, silence
from robusttrain.data import ImageData
from robusttrain.models.defended import DefendedClassifier
from robusttrain.running.made_from import MADE_FROM, made_from, place
from robusttrain.storage.files import hash_of_json
from robusttrain.storage.locks import alone
from robusttrain.storage.reading import read_torch
from robusttrain.storage.weights import save_tensors
from robusttrain.training import RobustTraining
from robusttrain.training.optimizers import settled

TRANSFORM = "AdversarialTransform"


def transformations(node: Any) -> list[dict[str, Any]]:
    """The arguments of every adversarial transformation under a configuration node."""
    if isinstance(node, list):
        return [each for item in node for each in transformations(item)]
    if not is_node(node):
        return []
    arguments = node.setdefault("init_args", {})
    if node["class_path"].rpartition(".")[2] == TRANSFORM:
        return [arguments]
    return [each for value in arguments.values() for each in transformations(value)]


def transforms(node: Any) -> list[dict[str, Any]]:
    """The arguments of those transformations that have no weights for their f_b."""
    return [each for each in transformations(node) if not each.get("weights")]


def provide_f_b(
    defense: dict[str, Any],
    data: ImageData,
    preset: str,
    folder: Path,
    trainer: dict[str, Any],
    seed: int,
    train: bool = True,
    say: Say = silence,
) -> None:
    """Fill in weights for every f_b in ``defense`` that has none, in place; train what was never
    trained. A run that needs what another one is training waits for it.

    Args:
        defense: configuration node.
        data: the data set that an f_b is trained on.
        preset: training preset for it.
        folder: where trained ones are kept.
        trainer: ``--trainer`` options of the main run: accelerator and precision are taken over.
        seed: of the training.
        train: whether to train; False raises instead.
        say: takes lines.

    Raises:
        UserError: nothing kept, and ``train`` is False.
    """
    for arguments, config, path in places(defense, data, preset, folder, seed, trainer, say):
        if not (train or path.is_file()):
            raise UserError("--defense: no weights for f_b: name them with --defense.weights FILE")
        with nullcontext() if path.is_file() else alone(path, "this f_b", say):
            if path.is_file():
                say(f"f_b: taking the one trained before, {path}")
            else:
                say(f"f_b: none at hand; training one first ({preset}), to be kept as {path}")
                _train(arguments["model"], data, config, trainer, seed, path, say)
        arguments["weights"] = str(path)


def places(
    defense: dict[str, Any] | None,
    data: ImageData,
    preset: str,
    folder: Path,
    seed: int,
    trainer: Mapping[str, Any],
    say: Say = silence,
) -> Iterator[tuple[dict[str, Any], dict[str, Any], Path]]:
    """Every f_b in ``defense`` without weights: the transformation's arguments, how it is trained,
    where it is kept. Arguments as for `provide_f_b`.
    """
    precision = str(trainer.get("precision"))
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
                data.batch_size,
            ],
            "precision": PRECISIONS.get(precision, precision),
            "training": as_before(config),
            "seed": seed,
        }
        key = hash_of_json(about)[:8]
        usual = folder / f"{data.name}-{key}.safetensors"
        path, why = place(usual, partial(made_from, data, arguments["model"], config))
        if why:
            say(f"f_b: {why}")
        yield arguments, config, path


def _training(preset: str) -> dict[str, Any]:
    """The training preset, checked, with all defaults."""
    parser = new_parser()
    parser.add_class_arguments(
        RobustTraining, "training", skip={"model", "num_classes", "seed"}, instantiate=False
    )
    parser.add_argument("--trainer.max_epochs", type=int, default=20)
    parsed = read(parser, [f"--config={presets.find('training', preset)}"], (), {})
    training = settled(plain(parsed.training))
    return {"training": training, "epochs": parsed.trainer.max_epochs}


def training_of(
    model: dict[str, Any], classes: int, config: dict[str, Any], seed: int
) -> RobustTraining:
    """What trains an f_b: ``model`` is its configuration, ``config`` that of its training."""
    return build_training(
        lambda: DefendedClassifier(None, build(model, "defense.model")),
        config["training"],
        seed,
        classes,
        "f_b_training",
    )


def f_b_trainer(trainer: dict[str, Any], epochs: int, say: Say = silence) -> Any:
    """Lightning's Trainer for an f_b, on the device and in the precision that ``--trainer``
    says.
    """
    taken: dict[str, Any] = {
        name: trainer[name]
        for name in ("accelerator", "precision", "enable_progress_bar")
        if name in trainer
    }
    return trainer_from(
        {**taken, "devices": 1, "max_epochs": epochs, "enable_model_summary": False},
        say,
        logger=False,
        enable_checkpointing=False,
        num_sanity_val_steps=0,
    )


def refuse_other_f_b(defense: Any, training: RobustTraining, checkpoint: Path) -> None:
    """Raise UserError if a run that goes on was told of an f_b that is not the checkpoint's, which
    it would go on with all the same.

    Args:
        defense: configuration node.
        training: as it was built, with the weights that ``defense`` names.
        checkpoint: that it goes on from.
    """
    named = [each["weights"] for each in transformations(defense) if each.get("weights")]
    if not named or training.model.defense is None:
        return
    kept = read_torch(checkpoint)["state_dict"]
    own = training.model.defense
    trained = {name for name, weight in own.named_parameters() if weight.requires_grad}
    for name, weight in own.state_dict().items():
        then = kept.get(f"model.defense.{name}", weight)
        # Averaging over steps leaves equal weights as they are but for rounding.
        if name not in trained and not torch.allclose(then.to(weight), weight, rtol=1e-4):
            raise UserError(
                f"--defense.weights {named[0]}: the run in {checkpoint} has another f_b, and would"
                " go on with that: leave the option out, or start a new run without --ckpt_path"
            )


def data_for(training: RobustTraining, data: ImageData) -> ImageData:
    """The data of an f_b's training, whatever the main recipe adds: what is kept is found by all of
    them.
    """
    own = data.alone()
    own.replays = training.objective.replays
    return own


def _train(
    model: dict[str, Any],
    data: ImageData,
    config: dict[str, Any],
    trainer: dict[str, Any],
    seed: int,
    path: Path,
    say: Say,
) -> None:
    training = training_of(model, data.facts().num_classes, config, seed)
    data = data_for(training, data)
    data.prepare_data()
    runner = f_b_trainer(trainer, config["epochs"], say)
    runner.fit(training, datamodule=data)
    metrics = {key: round(float(value), 4) for key, value in runner.callback_metrics.items()}
    right = metrics.get("val/accuracy", float("nan"))
    say(f"f_b: done, {right:.1%} of the validation images are right")
    save_tensors(
        training.model.classifier,
        path,
        {
            "training": json.dumps(config),
            "metrics": json.dumps(metrics),
            MADE_FROM: json.dumps(made_from(data, model, config)),
        },
    )
