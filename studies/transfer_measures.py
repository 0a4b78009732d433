"""Measurements on several models, with what `Field.about` says of them; ``count`` images are
taken.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from robusttrain import Rng
from robusttrain.attacks import Smooth
from robusttrain.commands import transfer
from robusttrain.config.attacks import scenarios, split_attacks
from robusttrain.config.build import build
from robusttrain.config.command_line import plain, read
from robusttrain.config.models import named_models
from robusttrain.config.transfer import parser
from robusttrain.data import ImageData
from robusttrain.defenses import RandomResizePad
from robusttrain.evaluation import verdicts
from robusttrain.models.defended import DefendedClassifier, MeanPrediction
from robusttrain.reporting import decision_regions, png
from robusttrain.transfer import (
    JPEG,
    Crafting,
    Estimate,
    GaussianBlur,
    GaussianNoise,
    Model,
    Planned,
    Regions,
    Rotation,
    Transformation,
    angle_matrix,
    answers,
    challenge_score,
    cumulative,
    destruction_curve,
    gradients,
    least_for,
    minimal_distortion,
    orthogonal,
    regions,
    same_mistake,
)
from robusttrain.transfer.commonly_correct import commonly_correct
from studies.scales import Settings, typed

PIXEL = 1 / 255
#: Wu et al. 2018, figure 4: strengths by transformation; noise in 255ths, blur in pixels.
TRANSFORMED: dict[str, tuple[tuple[float, ...], Callable[[float], Transformation]]] = {
    "rotation": ((5, 15, 30), lambda angle: Rotation(angle)),
    "noise": ((5, 15, 25), lambda sigma: GaussianNoise(sigma * PIXEL)),
    "blur": ((0.5, 1, 2), lambda radius: GaussianBlur(radius)),
    "JPEG": ((100, 80, 60), lambda quality: JPEG(int(quality))),
}


@dataclass(frozen=True)
class Material:
    """Models by name, and images that all of them classify correctly."""

    crafting: Crafting
    images: Tensor
    labels: Tensor
    indices: Tensor
    rng: Rng

    @property
    def models(self) -> dict[str, nn.Module]:
        """By name, in the order of the command line."""
        return {name: model.defended for name, model in self.crafting.models.items()}

    def crafted(self, attack: str, source: str, batch: int = 20) -> Tensor:
        """Adversarial images (n, C, H, W) of an attack of the command line."""
        network = self.crafting.source(attack, [source])
        scenario = self.crafting.attacks[attack].scenario
        rng = Rng.for_images(self.crafting.seed, self.indices).fold("attack").fold(attack)
        parts = [slice(start, start + batch) for start in range(0, len(self.images), batch)]
        return torch.cat(
            [scenario.attack(network, self.images[p], self.labels[p], rng[p]) for p in parts]
        )


@dataclass(frozen=True)
class Opened:
    """What a command line names: its data are ready, its models are built."""

    data: ImageData
    models: dict[str, Model]
    attacks: dict[str, Planned]
    seed: int
    device: torch.device

    @property
    def defended(self) -> dict[str, nn.Module]:
        """The models by name."""
        return {name: model.defended for name, model in self.models.items()}


def command_line(
    attacks: Settings, models: Sequence[str], data: Settings, **options: Any
) -> list[str]:
    """The options of evaluate.py for several models.

    Args:
        attacks: what is changed of each preset, by the preset's name.
        models: as ``--models`` takes them.
        data: options of the data set.
        options: others, by their names.
    """
    line = [f"--attack={name}" for name in attacks]
    for name, changes in attacks.items():
        line += typed({key: json.dumps(to) for key, to in changes.items()}, f"--attack.{name}.")
    return [*line, *typed(data), *typed(options), "--models", *models]


def matrix(folder: Path, crafted: str, **about: Any) -> dict[str, Any]:
    """What evaluate.py measures; images that one study crafted the others find in ``crafted``."""
    transfer.run(command_line(**about, output=str(folder), crafted=crafted))
    return dict(json.loads((folder / "results.json").read_text()))


def opened(images: int, **about: Any) -> Opened:
    """What the options name, with this many candidates for images."""
    names, overrides, rest = split_attacks(command_line(**about))
    config = read(parser(), rest, ("data",), {})
    data: ImageData = build(plain(config.data), "data", kind=ImageData)
    data.limit_test(images, config.seed)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    models = named_models(config.models, data, [], device)
    data.prepare_data()
    data.setup("test")
    attacks = {
        name: Planned(each) for name, each in scenarios(names, overrides, config.epsilon).items()
    }
    return Opened(data, models, attacks, config.seed, device)


def material(count: int, **about: Any) -> Material:
    """What the options name; ``count`` of the images that all models have right."""
    held = opened(**about)
    common = commonly_correct(
        held.defended, held.data.test_dataloader(), held.data.num_classes, held.seed
    )
    batch = held.data.test_images(common.indices[:count])
    images, labels, indices = (part.to(held.device) for part in batch)
    return Material(
        Crafting(held.models, held.attacks),
        images,
        labels,
        indices,
        Rng.for_images(held.seed, indices),
    )


def capacities(**about: Any) -> dict[str, Any]:
    """Parameters of every model, and its accuracy on the test images: the axes of [P3 figure 6]."""
    held = opened(**about)
    right: dict[str, list[Tensor]] = {name: [] for name in held.models}
    for batch in held.data.test_dataloader():
        images, labels, indices = (
            part.to(held.device) for part in held.data.on_after_batch_transfer(batch, 0)
        )
        rng = Rng.for_images(held.seed, indices).fold("score")
        for name, model in held.defended.items():
            right[name].append(verdicts(model, images, labels, rng, 1).squeeze(1))
    return {
        "models": {
            name: {
                "parameters": sum(parameter.numel() for parameter in model.parameters()),
                "accuracy": Estimate.share(torch.cat(right[name]).double()).json(),
            }
            for name, model in held.defended.items()
        }
    }


def destruction(count: int, **about: Any) -> dict[str, Any]:
    """Destruction rates of every attack from the first model onto the second: [P3 figure 4]."""
    held = material(count, **about)
    source, target = list(held.models)[:2]
    curves: dict[str, dict[str, Any]] = {}
    for attack in held.crafting.attacks:
        adversarial = held.crafted(attack, source)
        curves[attack] = {}
        for name, (strengths, transformation) in TRANSFORMED.items():
            by_strength = {strength: transformation(strength) for strength in strengths}
            curve = destruction_curve(
                held.models[target],
                held.images,
                adversarial,
                held.labels,
                by_strength,
                held.rng.fold(name),
            )
            curves[attack][name] = [(strength, estimate.json()) for strength, estimate in curve]
    return {"count": len(held.images), "source": source, "target": target, "curves": curves}


def planes(count: int, **about: Any) -> dict[str, Any]:
    """What all models answer around one image, along the first one's noise-reduced gradient and
    across it.
    """
    held = material(count, **about)
    first = next(iter(held.models.values()))
    image, label, rng = held.images[:1], held.labels[:1], held.rng[:1]
    along = gradients(first, image, label, rng, estimator=Smooth(20))[0].sign()
    across = orthogonal(along, rng)
    answers = regions(held.models, image[0], along, across, 25 * PIXEL, rng, points=21)
    return {
        "label": int(label),
        "reach": answers.reach,
        "counts": answers.counts(),
        "classes": {name: answered.tolist() for name, answered in answers.classes.items()},
    }


def pictured(point: Mapping[str, Any], path: Path) -> None:
    """Draw what `planes` found: decision regions of all models side by side."""
    classes = {name: torch.tensor(grid) for name, grid in point["classes"].items()}
    path.write_bytes(png(decision_regions(Regions(classes, point["reach"]), point["label"])))


def angles(count: int, **about: Any) -> dict[str, Any]:
    """Cosines between the models' gradients, plain and noise-reduced [P5 table 33]."""
    held = material(count, **about)
    matrices = {}
    for name, estimator in (("plain", None), ("noise-reduced", Smooth(20))):
        by_model = {
            model: gradients(network, held.images, held.labels, held.rng, estimator=estimator)
            for model, network in held.models.items()
        }
        matrices[name] = angle_matrix(by_model).json()
    return {"count": len(held.images), "cosines": matrices}


def distortion(count: int, **about: Any) -> dict[str, Any]:
    """Minimal transferable RMSD from the first model to the second, along gradient and sign [P5
    figure 1].
    """
    held = material(count, **about)
    source, target = list(held.models)[:2]
    gradient = gradients(held.models[source], held.images, held.labels, held.rng)
    distortions = {}
    for name, direction in (("FG", gradient), ("FGS", gradient.sign())):
        pair = [held.models[source], held.models[target]]
        least = minimal_distortion(
            pair, held.images, direction, held.labels, step=0.5 * PIXEL, limit=100 * PIXEL
        )
        steps = [number * PIXEL for number in range(0, 101, 2)]
        distortions[name] = {
            "median": least_for(least, 0.5) / PIXEL,
            "nine_tenths": least_for(least, 0.9) / PIXEL,
            "cdf": [(at / PIXEL, share.json()) for at, share in cumulative(least, steps)],
        }
    return {
        "count": len(held.images),
        "source": source,
        "target": target,
        "distortions": distortions,
    }


def mistakes(count: int, **about: Any) -> dict[str, Any]:
    """How often models make the same mistake on the first attack's images from the first model [P5
    table 9].
    """
    held = material(count, **about)
    source, attack = next(iter(held.models)), next(iter(held.crafting.attacks))
    adversarial = held.crafted(attack, source)
    said = {
        name: answers(model, adversarial, held.rng.fold("score"))
        for name, model in held.models.items()
    }
    return {
        "count": len(held.images),
        "source": source,
        "mistakes": same_mistake(said, held.labels.cpu()).json(),
    }


def challenge(canvas: int, count: int, **about: Any) -> dict[str, Any]:
    """The challenge's score of every model alone, and of the entry on it: layers, mirroring, 30
    passes [P4 5.1].

    The attacks see the bare models, each from every one of them, as the competitors' did.
    """
    held = material(count, **about)
    layers = RandomResizePad(round(canvas * 310 / 331), canvas, flip=0.5)
    crafted = {
        f"{attack} from {source}": held.crafted(attack, source)
        for attack in held.crafting.attacks
        for source in held.models
    }
    scores = {}
    for name, model in held.models.items():
        classifier = model.classifier if isinstance(model, DefendedClassifier) else model
        entry = MeanPrediction(DefendedClassifier(layers, classifier))
        scores[name] = {
            version: challenge_score(
                {
                    attack: answers(defense, images, held.rng.fold("score"))
                    for attack, images in crafted.items()
                },
                held.labels.cpu(),
            ).json()
            for version, defense in (("alone", model), ("entry", entry))
        }
    return {"count": len(held.images), "attacks": list(crafted), "canvas": canvas, "scores": scores}
