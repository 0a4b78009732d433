"""The networks of defenses that purify images: trained, and found where they were kept."""

from __future__ import annotations

import json
from collections.abc import Iterator
from inspect import Parameter
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
from jsonargparse import Namespace

from robusttrain.config import purifiers
from robusttrain.config.build import build, fit_to_data, is_node
from robusttrain.config.classes import defaults_of, resolve
from robusttrain.config.command_line import plain
from robusttrain.core.advice import without_advice
from robusttrain.core.errors import UserError
from robusttrain.core.telling import Say, silence
from robusttrain.core.typed import command
from robusttrain.data import ImageData
from robusttrain.defenses import Defense
from robusttrain.models import NoisePredictor
from robusttrain.running.alone import finished, fit
from robusttrain.running.made_from import MADE_FROM, changed, made_from
from robusttrain.storage.files import hash_of_json, may_write, writable
from robusttrain.storage.weights import read_metadata, save_tensors
from robusttrain.training import PurifierTraining
from robusttrain.training.purifiers import mean_loss

#: Name of what a file says about itself.
ABOUT = "purifier"
#: At most this many test images measure the loss.
IMAGES = 1000


def folder_in(checkpoints: str | Path) -> Path:
    """Where trained networks are kept."""
    return Path(checkpoints) / "purifiers"


@without_advice()
def train_configured(config: Namespace, say: Say = silence) -> Path:
    """Train as `purifiers.configure` read it, and keep the network where its defense looks."""
    data: ImageData = build(plain(config.data), "data", kind=ImageData)
    settings = {"purifier": plain(config.purifier), "trainer": plain(config.trainer)}
    fit_to_data(settings["purifier"]["network"], data.facts(), "purifier.network")
    output = None if config.output is None else Path(config.output)
    if output is not None and output.suffix != ".safetensors":
        raise UserError(f"--output {output}: must end in .safetensors")
    path = train(settings, data, folder_in(config.checkpoints), config.seed, output, say)
    name = _objective(settings).purifier
    weights = "" if output is None else f" --defense.weights {output}"
    say(
        f"train a classifier behind it with {command('train')} --defense {name}{weights}; put it"
        f" before one with {command('evaluate')} --defense {name}{weights} --model NAME --weights"
        " FILE"
    )
    return path


def train(
    settings: dict[str, Any],
    data: ImageData,
    folder: Path,
    seed: int,
    output: Path | None = None,
    say: Say = silence,
) -> Path:
    """Train a network, and keep it with what it is.

    Args:
        settings: "purifier": options of `PurifierTraining`, fitted to the data; "trainer": of
            Lightning's Trainer.
        data: the images.
        folder: for the file, if no ``output`` is named.
        seed: of the training.
        output: a .safetensors file.
        say: takes lines.

    Returns:
        The file.
    """
    depends = {key: settings["trainer"].get(key) for key in purifiers.DEPENDS}
    origin = made_from(data, settings["purifier"]["network"])
    about = {
        "data": _identity(data),
        MADE_FROM: origin,
        **settings["purifier"],
        "network": _spelt(settings["purifier"]["network"]),
        "trainer": {key: value for key, value in depends.items() if value is not None},
        "seed": seed,
    }
    objective = _objective(settings)
    key = hash_of_json(about)[:8]
    path = output or folder / f"{data.name}-{objective.purifier}-{key}.safetensors"
    may_write(path.parent, "--output" if output else "--checkpoints")
    pl.seed_everything(seed, verbose=False)
    training: PurifierTraining = build(
        {
            "class_path": "robusttrain.training.PurifierTraining",
            "init_args": {**settings["purifier"], "seed": seed},
        },
        "purifier",
    )
    data = data.alone()
    data.prepare_data()
    data.setup(None)
    sample = data.unaugmented("train", 2)
    mean_loss(training.network, objective, sample, seed, draws=1)  # raises where nothing fits
    writable(path.parent, "--output" if output else "--checkpoints")
    count = sum(weight.numel() for weight in training.network.parameters())
    epochs = settings["trainer"]["max_epochs"]
    say(
        f"{objective.purifier}: training its network, {count / 1e6:.2f} M parameters, {epochs}"
        f" epochs, into {path}"
    )
    unfinished = path.parent / f".{path.stem}-{key}"
    before = mean_loss(training.network, objective, test := data.unaugmented("test", IMAGES), seed)
    training.network.train()
    fit(training, data, settings["trainer"], unfinished, say)
    loss = mean_loss(training.network, objective, test, seed)
    about |= {"test_loss": round(loss, 6), "test_loss_untrained": round(before, 6)}
    save_tensors(training.network, path, {ABOUT: json.dumps(about)})
    finished(unfinished)
    say(
        f"{objective.purifier}: done, mean square {loss:.3g} on {len(test.images)} test images"
        f" ({objective.idle:.3g} for leaving the noise as it is); kept as {path}"
    )
    return path


def provide(
    defense: dict[str, Any] | None,
    data: ImageData,
    folder: Path,
    trainer: dict[str, Any],
    seed: int,
    trains: bool = True,
    say: Say = silence,
) -> None:
    """Fill in weights for every purifying network in ``defense`` that has none, in place: those of
    the newest file for the same network and data; train what is not there.

    Args:
        defense: configuration node, fitted to the data.
        data: the data set.
        folder: where trained networks are kept.
        trainer: ``--trainer`` options of the main run: accelerator and progress bar are taken over.
        seed: of a training.
        trains: whether to train; False raises instead.
        say: takes lines.

    Raises:
        UserError: nothing kept, and ``trains`` is False.
    """
    for kind, arguments in without_weights(defense):
        path = newest(kind, arguments["model"], data, folder, say)
        if path is not None:
            say(f"{kind}: taking the newest network for these data, {path}")
        elif not trains:
            raise UserError(
                f"--defense: no network for {kind} on these data under {folder}: train one"
                f" ({command('train')} --training {kind}), or name its file with --defense.weights"
                " FILE"
            )
        else:
            settings = purifiers.preset(kind)
            settings["purifier"]["network"] = arguments["model"]
            settings["trainer"] |= {
                key: trainer[key]
                for key in ("accelerator", "enable_progress_bar")
                if key in trainer
            }
            say(f"{kind}: no network at hand; training one first")
            path = train(settings, data, folder, seed, None, say)
        arguments["weights"] = str(path)


def without_weights(node: Any) -> Iterator[tuple[str, dict[str, Any]]]:
    """The ``trained_by`` and the arguments of every defense under a node whose network has no
    weights.
    """
    if isinstance(node, list):
        for item in node:
            yield from without_weights(item)
    if not is_node(node):
        return
    arguments = node.setdefault("init_args", {})
    maker = resolve(node["class_path"])
    if isinstance(maker, type) and issubclass(maker, Defense) and maker.trained_by:
        model = resolve(arguments["model"]["class_path"])
        brings = (
            isinstance(model, type) and issubclass(model, NoisePredictor) and model.brings_weights
        )
        if not arguments.get("weights") and not brings:
            yield maker.trained_by, arguments
        return
    for value in arguments.values():
        yield from without_weights(value)


def newest(
    kind: str, network: dict[str, Any], data: ImageData, folder: Path, say: Say = silence
) -> Path | None:
    """The newest file with this network, trained on these data; None if there is none."""
    fitting = {}
    for path in folder.glob(f"{data.name}-{kind}-*.safetensors"):
        about = json.loads(read_metadata(path).get(ABOUT, "{}"))
        if (about.get("data"), about.get("network")) == (_identity(data), _spelt(network)):
            fitting[path] = about.get(MADE_FROM, {})
    if not fitting:
        return None
    now = made_from(data, network)
    for path in sorted(fitting, key=lambda path: path.stat().st_mtime, reverse=True):
        if not (why := changed(fitting[path], now)):
            return path
        say(f"{kind}: {path} is not taken ({why})")
    return None


def _spelt(node: dict[str, Any]) -> dict[str, Any]:
    """The node of a network with its defaults, as a file holds it."""
    defaults = {
        name: value
        for name, value in defaults_of(resolve(node["class_path"])).items()
        if value is not Parameter.empty
    }
    whole = {**node, "init_args": {**defaults, **(node.get("init_args") or {})}}
    spelt: dict[str, Any] = json.loads(json.dumps(whole, default=str))
    return spelt


def _identity(data: ImageData) -> list[Any]:
    """What tells a data set from others."""
    return [type(data).__name__, str(data.root.resolve()), *data.facts()]


def _objective(settings: dict[str, Any]) -> Any:
    return build(settings["purifier"]["objective"], "purifier.objective")
