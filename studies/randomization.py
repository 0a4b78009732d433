"""Randomization layers: tables 1 to 6 of Xie et al. 2018, and EOT, which the paper did not try.

Vanilla attack, single pattern, ensemble of patterns, one-pixel padding and resizing, each by FGSM
with three radii, DeepFool and C&W; then PGD along the mean gradient over draws of the layers; and
the score of the challenge, eq. 5.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from robusttrain.config.command_line import main
from studies import report
from studies.input_diversity import FEW
from studies.models import configuration
from studies.parts import Argument, Arguments, Point, Training
from studies.scales import Scale
from studies.study import Study
from studies.transfer_measures import challenge
from studies.transfers import PIXEL, Field, field, told

RANDOM = "robusttrain.defenses.RandomResizePad"
FIXED = "robusttrain.defenses.FixedResizePad"
SOURCE = "robusttrain.attacks."
#: The score of eq. 5, of the layers as they were entered.
ENTRY = "challenge entry"
#: Radius of FGSM and of PGD along EOT's gradient, in 255ths.
RADII = (2, 5, 10)
#: By scenario: FGSM-2, 5 and 10, DeepFool, C&W; Inception-v3's defense model in tables 2 to 6.
PAPER = {
    "vanilla": (0.651, 0.545, 0.524, 0.983, 0.969),
    "single pattern": (0.638, 0.539, 0.518, 0.982, 0.974),
    "ensemble pattern": (0.412, 0.340, 0.328, 0.813, 0.629),
    "one-pixel padding": (0.396, 0.362, 0.388, 0.972, 0.702),
    "one-pixel resizing": (0.562,),
}


@dataclass(frozen=True)
class Layers:
    """Where the layers stand.

    Args:
        model: options that name the classifier and its weights.
        data: options of the data set.
        side: of the images, in pixels.
        canvas: of the layers, at the paper's ratio of 331 to 299.
        images: test images.
        slow_images: of DeepFool and C&W.
        draws: that score an image.
        cw: options of C&W.
        slow_sizes: of the ensemble of patterns under DeepFool and C&W; each is five patterns more.
        eot: draws and steps of EOT.
        eot_radii: its radii, in 255ths; what falls within one falls within larger ones.
    """

    model: Arguments
    data: Arguments
    side: int
    canvas: int
    images: int
    slow_images: int
    draws: int
    cw: Arguments
    slow_sizes: int
    eot: tuple[int, int]
    eot_radii: tuple[int, ...] = RADII

    def point(
        self, label: str, defense: Arguments, attack: Arguments, epsilon: float, slow: bool = False
    ) -> Point:
        """One evaluation of the classifier behind a defense."""
        count = self.slow_images if slow else self.images
        size = ("--images", str(count), "--draws", str(self.draws), "--epsilon", f"{epsilon:.10g}")
        return Point(label, (*self.data, *self.model, *defense, *size, *attack))


def layers(scale: Scale) -> Layers:
    """The layers at a scale."""
    arena = field(scale)
    first = next(iter(arena.models.values()))
    model: Arguments = (*scale.model, "--weights", first)
    if not isinstance(first, Training):
        preset, _, name = str(first).rpartition(":")
        pretrained = ("--model.name", name, "--model.pretrained", "true") if preset else ()
        model = ("--model", preset or name, *pretrained)
    side = configuration([str(argument) for argument in arena.data])[1].facts().image_size
    canvas = max(side + 2, round(side * 331 / 299))
    if scale.name == "paper":
        return Layers(model, arena.data, 299, 331, 5_000, 500, 3, (), 4, (30, 40))
    steps = "5" if scale.name == "smoke" else "30"
    cw = ("--attack.steps", steps, *FEW)
    images, slow, eot = {
        "smoke": (20, 8, (3, 3)),
        "small": (100, 20, (10, 10)) if "imagenet" not in scale.data else (40, 8, (10, 10)),
    }[scale.name]
    # EOT on images of 224 pixels takes two cores a quarter of an hour a radius.
    radii = RADII[:1] if "imagenet" in scale.data else RADII
    return Layers(model, arena.data, side, canvas, images, slow, 4, cw, 1, eot, radii)


def random(at: Layers) -> Arguments:
    """The layers as options."""
    return ("--defense", RANDOM, "--defense.low", str(at.side), "--defense.canvas", str(at.canvas))


def fixed(canvas: int, *options: str) -> Arguments:
    """One pattern as a defense."""
    return ("--defense", FIXED, "--defense.canvas", str(canvas), *options)


def attacks(at: Layers, *source: str) -> Iterator[tuple[str, Arguments, float, bool]]:
    """Name, options, radius, and whether it is slow, of the paper's attacks from a source."""
    fewer = (
        ("--attack.source.sizes", str(at.slow_sizes))
        if SOURCE + "EnsemblePattern" in source
        else ()
    )
    for radius in RADII:
        yield f"FGSM-{radius}", ("--attack", "fgsm", *source), radius * PIXEL, False
    yield "DeepFool", ("--attack", "deepfool", *source, *fewer), 1000.0, True
    yield "C&W", ("--attack", "cw", *at.cw, *source, *fewer), 1000.0, True


def scenarios(at: Layers) -> dict[str, tuple[Arguments, tuple[str, ...]]]:
    """By name: the defense that is evaluated, and the source of the attack."""
    source = "--attack.source.class_path"
    three = [
        {"class_path": SOURCE + "SinglePattern", "init_args": {"position": position}}
        for position in ("top-left", "top-right", "bottom-left")
    ]
    ensemble = (source, SOURCE + "Ensemble", "--attack.source.members", json.dumps(three))
    padded = fixed(at.side + 1, "--defense.position", "bottom-right")
    resized = fixed(at.side + 1, "--defense.size", str(at.side + 1))
    few = ("--attack.source.sizes", str(min(4, at.canvas - at.side)))
    return {
        "bare": ((), ()),
        "vanilla": (random(at), (source, SOURCE + "ClassifierOnly")),
        "single pattern": (random(at), (source, SOURCE + "SinglePattern")),
        "ensemble pattern": (random(at), (source, SOURCE + "EnsemblePattern", *few)),
        "one-pixel padding": (padded, ensemble),
        "one-pixel resizing": (resized, (source, SOURCE + "ClassifierOnly")),
    }


def points_of(at: Layers, arena: Field) -> list[Point]:
    """All measurements."""
    points = [
        at.point(f"{scenario}, {name}", defense, options, epsilon, slow)
        for scenario, (defense, source) in scenarios(at).items()
        for name, options, epsilon, slow in attacks(at, *source)
    ]
    draws, steps = at.eot
    given = ("--attack", "eot", "--attack.gradient.draws", str(draws), "--attack.steps", str(steps))
    points += [
        at.point(f"EOT, PGD-{radius}", random(at), given, radius * PIXEL) for radius in at.eot_radii
    ]
    # The layers enlarge images, which the small VGG does not take.
    entered = replace(
        arena, models={name: model for name, model in arena.models.items() if name != "VGG"}
    )
    crafted = entered.point("--attack", "fgsm", "--attack", "mdifgsm")
    size = ("--canvas", str(at.canvas), "--count", str(arena.images))
    return [*points, Point(ENTRY, (*size, *crafted), challenge)]


def run(arguments: list[str]) -> None:
    """Run the study."""
    study = Study("randomization", __doc__, arguments, imagenet=True)
    at = layers(study.scale)
    found = study.run(points_of(at, field(study.scale)))
    entry = found.pop(ENTRY)
    rows: list[tuple[str, ...]] = []
    values, radius = {}, at.eot_radii[-1]
    for label, point in found.items():
        scenario, name = label.split(", ")
        order = [attack for attack, *_ in attacks(at)]
        published = PAPER.get(scenario, ())
        place = order.index(name) if name in order else len(order)
        paper = report.percent(published[place]) if place < len(published) else "not in the paper"
        rows.append(
            (scenario, name, report.clean(point), report.robust(point), _largest(point), paper)
        )
        if name in (f"FGSM-{radius}", "C&W", f"PGD-{radius}"):
            values[label] = _accuracy(point)
    eot, bare = found[f"EOT, PGD-{radius}"], found[f"bare, FGSM-{radius}"]
    notes = (
        (
            f"Images of {at.side} pixels, layers to [{at.side}, {at.canvas}), accuracy over"
            f" {at.draws} draws each. All {at.images} images count ({at.slow_images} for DeepFool"
            " and C&W), also those that are wrong before an attack. The paper: Inception-v3 behind"
            " the layers, on images that it has right."
        ),
        f"The ensemble of patterns has {5 * at.slow_sizes + 1} patterns for DeepFool and C&W.",
        (
            f"EOT of {at.eot[0]} draws and {at.eot[1]} steps within {radius}/255 leaves"
            f" {report.robust(eot)} of {report.clean(eot)}; FGSM on the bare model leaves"
            f" {report.robust(bare)}. The layers stop attacks that do not expect them; where EOT's"
            " figure is near zero they are no defense against one that averages over draws."
        ),
    )
    rows += [
        (
            ENTRY,
            f"{len(entry['attacks'])} attacks on {name}",
            "-",
            told(scores["entry"]),
            "-",
            _entry(scores),
        )
        for name, scores in entry["scores"].items()
    ]
    columns = ("scenario", "attack", "clean", "accuracy", "largest change", "paper")
    setting = (
        "radii of 2, 5 and 10 as named, in 255ths; the classifier is"
        f" {' '.join(map(_name, at.model))}."
    )
    figure = report.bars(values, "accuracy behind the layers")
    report.write(
        study, {**found, ENTRY: entry}, columns, rows, figure, notes, setting, RADII[-1] * PIXEL
    )


def _entry(scores: Mapping[str, Any]) -> str:
    return (
        f"alone {told(scores['alone'])}; paper, ens-adv-Inception-ResNet-v2: 92.4 %, alone 77.3 %"
    )


def _name(argument: Argument) -> str:
    return argument.name if isinstance(argument, Training) else str(argument)


def _accuracy(point: Mapping[str, Any]) -> float:
    (row,) = point["attacks"].values()
    return float(row["robust_accuracy"])


def _largest(point: Mapping[str, Any]) -> str:
    """The largest change of the threat's norm; of C&W and DeepFool, which have no radius, in L2."""
    (row,) = point["attacks"].values()
    norm = point["threat"]["norm"]
    scale, unit = (255, "/255") if norm == "linf" else (1, "")
    return f"{norm} {scale * row['largest_perturbation']:.2f}{unit}"


if __name__ == "__main__":
    main(run)
