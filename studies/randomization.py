"""Randomization layers: tables 1 to 6 of Xie et al. 2018, and EOT, which the paper did not try.

Vanilla attack, single pattern, ensemble of patterns, one-pixel padding and resizing, each by FGSM
with three radii, DeepFool and C&W; then PGD along the mean gradient over draws of the layers; and
the score of the challenge, eq. 5.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

from robusttrain.commands.entry import main
from robusttrain.config.build import build
from robusttrain.config.evaluation import read_plan
from robusttrain.evaluation.plan import EvaluationPlan, Node
from robusttrain.evaluation.report import Results
from robusttrain.reporting import bars
from robusttrain.running.jobs import Call, Job
from studies.input_diversity import FEW
from studies.scales import Scale, Settings, nodes_of, training_plan, typed
from studies.study import Study, percent
from studies.transfer_measures import challenge
from studies.transfers import PIXEL, Field, field, with_interval

RANDOM = "robusttrain.defenses.RandomResizePad"
FIXED = "robusttrain.defenses.FixedResizePad"
#: The score of eq. 5, of the layers as they were entered.
ENTRY = "challenge entry"
#: Radius of FGSM and of PGD along EOT's gradient, in 255ths.
RADII = (2, 5, 10)
#: By scenario, in this order; Inception-v3 in tables 2 to 6: the defense model, and of table 2 the
#: target model, which is bare.
ORDER = (*(f"FGSM-{radius}" for radius in RADII), "DeepFool", "C&W")
PAPER = {
    "bare": (0.332, 0.311, 0.330, 0.0, 0.0),
    "vanilla": (0.651, 0.545, 0.524, 0.983, 0.969),
    "single pattern": (0.638, 0.539, 0.518, 0.982, 0.974),
    "ensemble pattern": (0.412, 0.340, 0.328, 0.813, 0.629),
    "one-pixel padding": (0.396, 0.362, 0.388, 0.972, 0.702),
    "one-pixel resizing": (0.562, 0.488, 0.510, 0.994, 0.978),
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
        cw: what is changed of C&W.
        slow_sizes: of the ensemble of patterns under DeepFool and C&W; each is five patterns more.
        eot: draws and steps of EOT.
        radii: of FGSM, in 255ths.
        eot_radii: its radii, in 255ths; what falls within one falls within larger ones.
    """

    model: Settings
    data: Settings
    side: int
    canvas: int
    images: int
    slow_images: int
    draws: int
    cw: Settings
    slow_sizes: int
    eot: tuple[int, int]
    radii: tuple[int, ...] = RADII
    eot_radii: tuple[int, ...] = RADII

    def point(
        self, defense: Settings, name: str, changes: Settings, epsilon: float, slow: bool = False
    ) -> EvaluationPlan:
        """One evaluation of the classifier behind a defense."""
        said = {key: json.dumps(to) for key, to in changes.items()}
        plan = base_plan(*typed({**self.data, **self.model, **defense, "epsilon": epsilon}))
        return replace(
            plan,
            attacks=nodes_of([name], [*said.items()], epsilon),
            images=self.slow_images if slow else self.images,
            draws=self.draws,
            audit=False,
        )


@cache  # the same defense meets attack after attack
def base_plan(*options: str) -> EvaluationPlan:
    """The plan of evaluate.py for these options."""
    return read_plan(options)


def layers(scale: Scale) -> Layers:
    """The layers at a scale."""
    arena = field(scale)
    first, on_imagenet = next(iter(arena.models.values())), scale.data["data"] == "imagenet"
    if isinstance(first, Job):
        model: Settings = {**scale.model, "weights": first.weights}
    elif first.startswith("timm:"):
        name = first.removeprefix("timm:")
        model = {"model": "timm", "model.name": name, "model.pretrained": True}
    else:
        model = {"model": first}
    side = build(training_plan(*typed(arena.data)).data, "data").facts().image_size
    canvas = max(side + 2, round(side * 331 / 299))
    if scale.name == "paper":
        return Layers(model, arena.data, 299, 331, 5_000, 500, 3, {}, 4, (30, 40))
    cw = {"steps": 5 if scale.name == "smoke" else 30, **FEW}
    images, slow, eot = {
        "smoke": (8, 4, (2, 2)),
        "small": (40, 8, (10, 10)) if on_imagenet else (100, 20, (10, 10)),
    }[scale.name]
    # EOT on images of 224 pixels takes two cores a quarter of an hour a radius.
    eot_radii: tuple[int, ...] = RADII[:1] if on_imagenet else RADII
    radii: tuple[int, ...] = RADII
    if scale.name == "smoke":
        radii = eot_radii = RADII[-1:]
    return Layers(model, arena.data, side, canvas, images, slow, 4, cw, 1, eot, radii, eot_radii)


def random(at: Layers) -> Settings:
    """The layers as options."""
    return {"defense": RANDOM, "defense.low": at.side, "defense.canvas": at.canvas}


def attacks(at: Layers, source: Node | None) -> dict[str, tuple[str, Settings, float, bool]]:
    """By name: preset, what is changed of it, radius, and whether it is slow, of the paper's
    attacks from a source.
    """
    changes: dict[str, Any] = {"source": source} if source else {}
    slow = dict(changes)
    if source and source["class_path"].endswith("EnsemblePattern"):
        slow["source.sizes"] = at.slow_sizes
    family: dict[str, tuple[str, Settings, float, bool]] = {
        f"FGSM-{radius}": ("fgsm", changes, radius * PIXEL, False) for radius in at.radii
    }
    family["DeepFool"] = ("deepfool", slow, 1000.0, True)
    family["C&W"] = ("cw", {**at.cw, **slow}, 1000.0, True)
    return family


def scenarios(at: Layers) -> dict[str, tuple[Settings, Node | None]]:
    """By name: the defense that is evaluated, and the source of the attack."""

    def source(name: str, **arguments: Any) -> Node:
        return {"class_path": f"robusttrain.attacks.{name}", "init_args": arguments}

    one_pixel = {"defense": FIXED, "defense.canvas": at.side + 1}
    three = [
        source("SinglePattern", position=position)
        for position in ("top-left", "top-right", "bottom-left")
    ]
    few = min(4, at.canvas - at.side)
    return {
        "bare": ({}, None),
        "vanilla": (random(at), source("ClassifierOnly")),
        "single pattern": (random(at), source("SinglePattern")),
        "ensemble pattern": (random(at), source("EnsemblePattern", sizes=few)),
        "one-pixel padding": (
            {**one_pixel, "defense.position": "bottom-right"},
            source("Ensemble", members=three),
        ),
        "one-pixel resizing": (
            {**one_pixel, "defense.size": at.side + 1},
            source("ClassifierOnly"),
        ),
    }


def points_of(at: Layers, arena: Field) -> dict[str, EvaluationPlan | Call]:
    """All measurements."""
    points: dict[str, EvaluationPlan | Call] = {
        f"{scenario}, {name}": at.point(defense, *how)
        for scenario, (defense, source) in scenarios(at).items()
        for name, how in attacks(at, source).items()
    }
    draws, steps = at.eot
    eot = {"gradient.draws": draws, "steps": steps}
    for radius in at.eot_radii:
        points[f"EOT, PGD-{radius}"] = at.point(random(at), "eot", eot, radius * PIXEL)
    # The layers enlarge images, which the small VGG does not take.
    entered = replace(
        arena, models={name: model for name, model in arena.models.items() if name != "VGG"}
    )
    about = entered.about({"fgsm": {}, "mdifgsm": {}})
    entry = Call(challenge, {**about, "canvas": at.canvas, "count": arena.images})
    return {**points, ENTRY: entry}


def run(arguments: list[str]) -> None:
    """Run the study."""
    study = Study("randomization", __doc__, arguments, "imagenet")
    at = layers(study.scale)
    results = study.run(points_of(at, field(study.scale)))
    entry = results.pop(ENTRY)
    rows: list[tuple[object, ...]] = []
    values, radius = {}, at.eot_radii[-1]
    for label, point in results.items():
        scenario, name = label.split(", ")
        published = dict(zip(ORDER, PAPER.get(scenario, ()), strict=False))
        paper = percent(published[name]) if name in published else "not in the paper"
        rows.append((scenario, name, point.clean, point.only.robust, _largest(point), paper))
        if name in (f"FGSM-{radius}", "C&W", f"PGD-{radius}"):
            values[label] = point.only.robust.accuracy or 0
    eot, bare = results[f"EOT, PGD-{radius}"], results[f"bare, FGSM-{radius}"]
    notes = (
        (
            f"Images of {at.side} pixels, layers to [{at.side}, {at.canvas}), accuracy over"
            f" {at.draws} draws each. All {at.images} images count ({at.slow_images} for DeepFool"
            " and C&W), also those that are wrong before an attack. The paper: Inception-v3, on"
            " images that it has right."
        ),
        f"The ensemble of patterns has {5 * at.slow_sizes + 1} patterns for DeepFool and C&W.",
        (
            f"EOT of {at.eot[0]} draws and {at.eot[1]} steps within {radius}/255 leaves"
            f" {eot.only.robust} of {eot.clean}; FGSM on the bare model leaves"
            f" {bare.only.robust}. The layers stop attacks that do not expect them; where"
            " EOT's figure is near zero they are no defense against one that averages over draws."
        ),
    )
    rows += [
        (
            ENTRY,
            f"{len(entry['attacks'])} attacks on {name}",
            "-",
            with_interval(scores["entry"]),
            "-",
            _entry(scores),
        )
        for name, scores in entry["scores"].items()
    ]
    columns = ("scenario", "attack", "clean", "accuracy", "largest change", "paper")
    setting = (
        f"radii of 2, 5 and 10 as named, in 255ths; the classifier is {' '.join(typed(at.model))}."
    )
    figure = bars(values, "accuracy behind the layers")
    study.write(columns, rows, figure, notes, setting, RADII[-1] * PIXEL)


def _entry(scores: Mapping[str, Any]) -> str:
    alone = with_interval(scores["alone"])
    return f"alone {alone}; paper, ens-adv-Inception-ResNet-v2: 92.4 %, alone 77.3 %"


def _largest(point: Results) -> str:
    """The largest change of the threat's norm; of C&W and DeepFool, which have no radius, in L2."""
    norm = point.json["threat"]["norm"]
    scale, unit = (255, "/255") if norm == "linf" else (1, "")
    return f"{norm} {scale * point.only.largest_perturbation:.2f}{unit}"


if __name__ == "__main__":
    main(run)
