"""Trains h towards the g of a checkpoint."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, cast

import pytorch_lightning as pl
from jsonargparse import Namespace

from robusttrain.attacks.sources.unrolled import Searching
from robusttrain.config.checkpoints import load, newest, read_recipe
from robusttrain.config.command_line import listed, plain
from robusttrain.config.reparameterization import DEPENDS
from robusttrain.core.advice import without_advice
from robusttrain.core.errors import UserError, under
from robusttrain.core.rng import Rng
from robusttrain.core.telling import Say, silence
from robusttrain.data import ImageData
from robusttrain.defenses import Defense
from robusttrain.evaluation import check_classes
from robusttrain.models import FullyConvolutional
from robusttrain.models.defended import DefendedClassifier
from robusttrain.running.alone import finished, fit
from robusttrain.running.made_from import MADE_FROM, made_from
from robusttrain.running.surrogates import SEED, Keeper
from robusttrain.storage.files import hash_of_json, may_write, writable, write_json
from robusttrain.training import ReparameterizationTraining
from robusttrain.training.reparameterization import errors

#: Of each split, at most this many images measure the errors.
IMAGES = 1000


def train_configured(config: Namespace, say: Say = silence) -> dict[str, float]:
    """Train h as `configure` read it, and keep it where ``evaluate.py --attack reparameterization``
    finds it; the errors.
    """
    path = Path(config.checkpoint) if config.checkpoint else newest(config.checkpoints)
    target = load(path, listed(config.trust))
    if target.defense is None:
        raise UserError(f"--checkpoint {path}: it has no defense that h could stand for")
    trainer = plain(config.trainer)
    # All that h depends on: a short trial must not be found in place of the real one.
    settings = {
        "h": plain(config.h),
        "trainer": {key: trainer[key] for key in DEPENDS if trainer[key] is not None},
    }
    folder = Path(config.checkpoints) / "surrogates"
    keeper = Keeper(folder, target, plain(config.data), trainer, read_recipe(path)["defense"])
    output = Path(config.output) if config.output else keeper.path("reparameterization", settings)
    if output.suffix != ".safetensors":
        raise UserError(f"--output {output}: must end in .safetensors")
    return train(target, keeper.data, settings, trainer, SEED, output, say)


@without_advice()
def train(
    target: DefendedClassifier,
    data: ImageData,
    settings: dict[str, Any],
    trainer: dict[str, Any],
    seed: int,
    path: Path,
    say: Say = silence,
) -> dict[str, float]:
    """Train h towards the target's g and keep it as ``path``; beside it, the errors as JSON.

    Args:
        target: f_a(g(.)).
        data: the attacker's images.
        settings: "h": width, depth, learning_rate, weight_decay; "trainer": max_epochs.
        trainer: ``--trainer.*`` options.
        seed: of the training.
        path: a .safetensors file.
        say: takes lines.
    """
    may_write(path.parent, "--output")
    defense = target.defense
    assert isinstance(defense, Defense)
    searching = [cast(Searching, part) for part in defense.parts if part.searches]
    # No pixel has farther to go than from 0 to 1, also where a search has no bound.
    radius = min(sum(part.attack.threat.epsilon for part in searching) or 1.0, 1.0)
    options = settings["h"]
    pl.seed_everything(seed, verbose=False)
    with under("--h"):
        network = FullyConvolutional(
            radius, data.facts().channels, options["width"], options["depth"]
        )
        training = ReparameterizationTraining(
            defense, network, options["learning_rate"], options["weight_decay"], seed=seed
        )
    data.prepare_data()
    data.setup(None)
    sample = data.unaugmented("train", 1).images
    check_classes(target, sample, data.facts().num_classes, "the checkpoint")
    if defense(sample).shape != sample.shape:
        raise UserError(
            f"reparameterization: {type(defense).__name__} changes the size of images: h cannot"
            " follow"
        )
    writable(path.parent, "--output")
    say(f"training h, {settings['trainer']['max_epochs']} epochs, into {path}")
    unfinished = path.parent / f".{path.stem}-{hash_of_json([settings, seed])[:8]}"
    fit(training, data, {**trainer, **settings["trainer"]}, unfinished, say)
    network.eval()
    measured: dict[str, float] = {}
    counts: dict[str, int] = {}
    for split in ("train", "test"):
        batch = data.unaugmented(split, IMAGES)
        counts[split] = len(batch.images)
        for start in range(0, len(batch.images), 250):
            part = slice(start, start + 250)
            rng = Rng.for_images(seed, batch.indices[part]).fold("errors").fold(split)
            share = len(batch.images[part]) / len(batch.images)
            for name, values in errors(defense, network, batch.images[part], rng).items():
                measured[f"{split}_{name}"] = (
                    measured.get(f"{split}_{name}", 0.0) + share * values.mean().item()
                )
    measured = {name: round(value, 6) for name, value in measured.items()}
    origin = made_from(data)
    network.save(path, {"errors": json.dumps(measured), MADE_FROM: json.dumps(origin)})
    write_json({**settings, "seed": seed, "images": counts, **measured}, path.with_suffix(".json"))
    finished(unfinished)
    say(
        f"h: done, {measured['test_error']:.2g} from g on test images (mean square per pixel"
        f" value; at least {measured['test_floor']:.2g} for any function of x,"
        f" {measured['test_identity']:.2g} for x itself); kept as {path}"
    )
    return measured
