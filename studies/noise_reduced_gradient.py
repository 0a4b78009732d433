"""Noise-reduced gradients: tables 1 to 8 and figures 3 to 6 of Wu et al. 2018, and appendix B on an
embedded set.

FGSM, FGM and IGSM beside their noise-reduced versions at equal numbers of gradients, from single
models and ensembles, targeted too; the noise sigma and the number of copies m; what transformations
destroy; decision regions.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from robusttrain.commands.entry import main
from robusttrain.config import presets
from robusttrain.reporting import lines
from robusttrain.running.jobs import Call, Job
from studies.scales import Scale, Settings
from studies.study import NOT_AVAILABLE, Study, percent
from studies.transfer_measures import capacities, destruction, pictured, planes
from studies.transfers import PIXEL, Field, counted, field, with_interval


@dataclass(frozen=True)
class Sizes:
    """Steps of nr-IGSM, copies m, what is varied, attacks on ensembles, most images, images that
    say how accurate the models are, epochs of appendix B; steps of either targeted attack, and its
    radius in 255ths, where these are not those of the others.
    """

    steps: int
    copies: int
    sigmas: tuple[float, ...]
    numbers: tuple[int, ...]
    ensembles: tuple[str, ...]
    images: int
    tested: int
    epochs: int
    targeted: tuple[int, int] | None = None


#: densenet121 onto resnet152 in tables 1, 2 and 5; targeted ensemble onto resnet152 in table 8.
PAPER = {
    "FGSM": ("34.4 %", "66.7 %"),
    "FGM": ("34.5 %", "68.7 %"),
    "IGSM": ("50.1 %", "80.6 %"),
    "IGSM targeted": ("11.6 %", "37.1 %"),
}
SETTINGS = {
    "smoke": Sizes(1, 2, (15,), (2,), ("FGSM",), 20, 20, 1),
    "small": Sizes(4, 5, (5, 25), (2, 10), ("FGSM", "IGSM targeted"), 200, 500, 10),
    "paper": Sizes(
        *(5, 20, (2, 5, 10, 15, 20, 25), (5, 10, 20, 50), tuple(PAPER), 1_000, 5_000, 30),
        targeted=(20, 20),  # k and epsilon of table 8
    ),
}
#: Hidden layers of appendix B, and success rates of table 4 onto D = 1 and D = 9.
DEPTHS = {
    1: ("89.4 %", "64.4 %"),
    3: ("52.9 %", "49.4 %"),
    5: ("47.3 %", "44.8 %"),
    9: ("31.2 %", "39.6 %"),
}


def pairs(settings: Sizes) -> dict[str, tuple[str, Settings, str, Settings]]:
    """By name: an attack and what is changed of it, and the noise-reduced one; iterated ones with
    equal gradient counts, but for targeted ones that have the paper's numbers of steps.
    """
    gradients = {"steps": settings.steps * settings.copies}
    copies = {"gradient.samples": settings.copies}
    reduced = {"steps": settings.steps, **copies}
    goal, goal_reduced = gradients, reduced
    if settings.targeted:
        goal = {"steps": settings.targeted[0]}
        goal_reduced = {**goal, **copies}
    return {
        "FGSM": ("fgsm", {}, "nrfgsm", copies),
        "FGM": ("fgm", {}, "nrfgm", copies),
        "IGSM": ("ifgsm", {**gradients, "step_size": PIXEL}, "nrigsm", reduced),
        "IGSM targeted": ("ifgsm-targeted", goal, "nrigsm-targeted", goal_reduced),
    }


def networks(scale: Scale, settings: Sizes) -> dict[str, Job | str]:
    """Appendix B: fully connected networks of growing depth, on digits at every scale."""
    how = {"data": "digits", "data.batch_size": 64, "robust.every": 0, "pictures.images": 0}
    how |= {"model": "mlp", "training": "standard", "training.learning_rate": 0.05}
    return {
        f"D = {depth}": scale.job(
            f"mlp-depth-{depth}", {**how, "model.depth": depth}, settings.epochs
        )
        for depth in DEPTHS
    }


def points_of(arena: Field, settings: Sizes, appendix: Field) -> dict[str, Call]:
    """All measurements."""
    points = {}
    images = min(settings.images, arena.images)
    for name, (plain, options, reduced, others) in pairs(settings).items():
        ensembles = name in settings.ensembles
        wide = settings.targeted[1] * PIXEL if settings.targeted and "targeted" in name else None
        points[f"{name}, plain"] = arena.point({plain: options}, images, wide, ensembles)
        points[f"{name}, reduced"] = arena.point({reduced: others}, images, wide, ensembles)
    copies = {"gradient.samples": settings.copies}
    for sigma in settings.sigmas:
        noise = {**copies, "gradient.sigma": sigma * PIXEL}
        points[f"sigma {sigma:g}"] = arena.point({"nrfgsm": noise}, images)
    for number in settings.numbers:
        points[f"m {number}"] = arena.point({"nrfgsm": {"gradient.samples": number}}, images)
    fgsm: dict[str, Settings] = {"fgsm": {}}
    both = {**fgsm, "nrfgsm": copies}
    return {
        **points,
        "destruction": Call(destruction, {**arena.about(both), "count": images}),
        "planes": Call(planes, {**arena.about(fgsm, images=40), "count": 1}),
        "models": Call(capacities, arena.about(fgsm, images=settings.tested)),
        "appendix B": appendix.point(fgsm),
    }


def run(arguments: list[str]) -> None:
    """Run the study."""
    study = Study("noise_reduced_gradient", __doc__, arguments, "imagenet")
    settings = SETTINGS[study.scale.name]
    arena = field(study.scale)
    appendix = Field(
        networks(study.scale, settings), {"data": "digits"}, 200, 40 * PIXEL, arena.crafted
    )
    results = study.run(points_of(arena, settings, appendix))
    rows: list[tuple[object, ...]] = []
    series: dict[str, list[tuple[float, float]]] = {"sigma, in 255ths": [], "m": []}
    holds = {}
    for name, (plain, _, reduced, _) in pairs(settings).items():
        kind = "matching_top1" if "targeted" in name else "success_top1"
        black_box = []
        for version, attack, paper in zip(
            ("plain", "reduced"), (plain, reduced), PAPER[name], strict=True
        ):
            point = results[f"{name}, {version}"]
            white, black = (arena.mean(point, attack, other, kind=kind) for other in (False, True))
            ensemble = (
                percent(arena.mean(point, attack, True, True, kind))
                if name in settings.ensembles
                else "-"
            )
            means = (percent(white), percent(black), ensemble)
            rows.append((name, version, *means, _gradients(point, attack), paper))
            black_box.append(black)
        if name == "FGSM":  # the plain attack is that of sigma 0
            series["sigma, in 255ths"] += list(zip((0.0, _sigma()), black_box, strict=True))
            series["m"].append((float(settings.copies), black_box[1]))
        holds[name] = black_box[1] > black_box[0]
    for label, point in results.items():
        what, _, value = label.partition(" ")
        if what in ("sigma", "m"):
            white, black = (arena.mean(point, "nrfgsm", other) for other in (False, True))
            cells = (percent(white), percent(black), "-", _gradients(point, "nrfgsm"))
            rows.append(("FGSM", label, *cells, NOT_AVAILABLE))
            series["sigma, in 255ths" if what == "sigma" else "m"].append((float(value), black))
    rows += _destroyed(results["destruction"])
    attackers = _attackers(arena, results)
    rows += [
        (f"{name}: {about}", "plain FGSM", "-", percent(rate), "-", 1, "figure 6")
        for name, about, rate in attackers
    ]
    for depth, published in zip(appendix.models, DEPTHS.values(), strict=True):
        onto = [
            with_interval(appendix.rate(results["appendix B"], "fgsm", depth, target))
            for target in ("D = 1", "D = 9")
        ]
        rows.append(
            (
                "FGSM, appendix B",
                f"from {depth}",
                *onto,
                "-",
                1,
                " and ".join(published) + " onto D = 1, 9",
            )
        )
    pictured(results["planes"], study.output / "planes.png")
    notes = (
        (
            f"{counted(results['FGSM, plain'])} Mean success rates (targeted: matching rates) over"
            " pairs of models: onto the source itself, onto others, and of all models but one onto"
            " that one. In appendix B: onto D = 1, and onto D = 9."
        ),
        f"Equal numbers of gradients where steps are iterated: m = {settings.copies},"
        f" {settings.steps} steps of 5/255, {_targeted(settings)}. Noise reduction raises transfer"
        " to other models: "
        + "; ".join(f"{name} {'yes' if better else 'no'}" for name, better in holds.items())
        + ". Models that attack others best, by FGSM: "
        + ", then ".join(f"{name} ({about}): {percent(rate)}" for name, about, rate in attackers)
        + "; the paper's best are small and accurate. planes.png shows what the models answer"
        " around one image.",
    )
    columns = (
        "attack",
        "version",
        "white box",
        "black box",
        "held out",
        "gradients",
        "paper: black box",
    )
    figure = lines(
        {name: sorted(each) for name, each in series.items()},
        "sigma in 255ths, or m",
        "success rate onto other models",
    )
    study.write(columns, rows, figure, notes, arena.setting, arena.epsilon)


def _targeted(settings: Sizes) -> str:
    """How the targeted attacks differ from the others, for a report."""
    if settings.targeted is None:
        return "targeted of 3/4 of the radius"
    steps, radius = settings.targeted
    return f"but for targeted attacks, both of {steps} steps of 3/4 of their radius, {radius}/255"


def _attackers(arena: Field, results: Mapping[str, Any]) -> list[tuple[str, str, float]]:
    """Name, size and error, and mean success rate of FGSM onto the other models, best attackers
    first.
    """
    models, rows = results["models"]["models"], []
    for source in arena.models:
        about = models[arena.called(source)]
        told_about = (
            f"{about['parameters'] / 1e6:.2f} M parameters, error"
            f" {percent(1 - about['accuracy']['value'])}"
        )
        others = [target for target in arena.models if target != source]
        rates = [
            arena.rate(results["FGSM, plain"], "fgsm", source, target)["value"] for target in others
        ]
        rows.append((source, told_about, sum(rates) / len(rates)))
    return sorted(rows, key=lambda row: -row[2])


def _sigma() -> float:
    """The preset's, in 255ths."""
    return (
        float(presets.read("attack", "nrfgsm")["init_args"]["gradient"]["init_args"]["sigma"])
        / PIXEL
    )


def _gradients(point: dict[str, Any], attack: str) -> int:
    return int(point["attacks"][attack]["gradient_evaluations_per_image"])


def _destroyed(point: dict[str, Any]) -> list[tuple[object, ...]]:
    """Destruction rates at the strongest transformations."""
    rows: list[tuple[object, ...]] = []
    for attack, curves in point["curves"].items():
        for name, curve in curves.items():
            strength, rate = curve[-1]
            label = f"destruction rate, {name} {strength:g}"
            rows.append((label, attack, "-", with_interval(rate), "-", "-", NOT_AVAILABLE))
    return rows


if __name__ == "__main__":
    main(run)
