"""The models of `benchmarks.strength`, and the images that they get right."""

from __future__ import annotations

import argparse
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

import robusttrain
from benchmarks.strength_contender import NAMES
from benchmarks.timing import load_images, network, right_for_all
from robusttrain import Rng
from robusttrain.data import Digits, ImageData
from robusttrain.defenses import RandomResizePad
from robusttrain.models.defended import DefendedClassifier

#: Models, in the order in which ``--images`` and radii are given.
NAMED = ("f_b", "standard", "randomized")
#: So many images are attacked at once, and kept in one file.
PART = 16
#: Images among which those that a model gets right are taken, whatever their number, so that the
#: first of them stay the same.
DRAWN = 300


@dataclass(frozen=True)
class Subject:
    """A model under attack, with the images (n, C, H, W) that it gets right, labels (n,), and the
    radius in each norm.
    """

    model: DefendedClassifier
    images: Tensor
    labels: Tensor
    radii: dict[str, float]


def subjects(arguments: argparse.Namespace) -> dict[str, Subject]:
    """The three models: adversarially trained, standard, and the first behind randomization."""
    if arguments.root:
        data, images, labels = load_images(arguments.root, DRAWN)
        trained = {
            "f_b": trained_network(arguments.f_b_model, arguments.f_b, data),
            "standard": trained_network(arguments.standard_model, arguments.standard, data),
        }
    else:
        digits = Digits(batch_size=DRAWN)
        digits.limit_test(DRAWN, seed=0, at_most=True)
        digits.setup("test")
        batch = digits.on_after_batch_transfer(next(iter(digits.test_dataloader())), 0)
        images, labels = batch.images.contiguous(), batch.labels
        trained = {
            "f_b": robusttrain.load("digits-adversarial"),
            "standard": robusttrain.load("digits-standard"),
        }
    size = images.shape[-1]
    models = {name: DefendedClassifier.of(model.eval()) for name, model in trained.items()}
    layers = RandomResizePad(low=size * 7 // 8, canvas=size)
    models["randomized"] = DefendedClassifier(layers, trained["f_b"])
    chosen = {}
    few = of_each(arguments.images, len(NAMED))
    for place, (name, wanted) in enumerate(zip(NAMED, few, strict=True)):
        if name not in arguments.models:
            continue
        model = models[name].requires_grad_(False)
        torch.manual_seed(0)
        right = right_for_all([model, model, model], images, labels, wanted)
        chosen[name if arguments.root else f"digits {name}"] = Subject(
            model.fast(),
            *right,
            {norm: of_each(getattr(arguments, norm), len(NAMED))[place] for norm in NAMES},
        )
    return chosen


def trained_network(preset: str, file: str | None, data: ImageData) -> nn.Module:
    """A checkpoint of ours says itself what it is; other weights go into the preset's model."""
    if file and file.endswith(".ckpt"):
        return robusttrain.load(file)
    return network(preset, file, data)


def parts(subject: Subject) -> list[Subject]:
    """The same model with up to `PART` images at a time."""
    splits = zip(subject.images.split(PART), subject.labels.split(PART), strict=True)
    return [replace(subject, images=images, labels=labels) for images, labels in splits]


def fingerprint(subject: Subject) -> float:
    """Another number for other images or other weights."""
    with torch.no_grad():
        logits = subject.model(subject.images, streams(len(subject.images)))
    return round(float(logits.double().square().mean()), 3)


def streams(count: int) -> Rng:
    """Streams of the draw that judges what attacks returned."""
    return Rng.for_images(2, torch.arange(count))


def of_each(given: list[Any], count: int) -> list[Any]:
    """One value for all, or one for each."""
    return given * count if len(given) == 1 else given
