"""Input diversity: tables 1 to 3 and figures 4 to 6 of Xie et al. 2019.

FGSM, I-FGSM, DI2-FGSM, MI-FGSM and M-DI2-FGSM from one network and from ensembles of all but one,
C&W and D-C&W; then the transformation probability p, the number of steps N and the step size alpha.
Table 4, defenses of a competition, is left out: they are not at hand.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from robusttrain.commands.entry import main
from robusttrain.reporting import lines
from robusttrain.running.jobs import Call
from studies.scales import Settings
from studies.study import NOT_AVAILABLE, Study, percent
from studies.transfers import HELD_OUT, PIXEL, Field, counted, field, with_interval

FAMILY = ("fgsm", "ifgsm", "difgsm", "mifgsm", "mdifgsm")
OPTIMISED = ("cw", "d-cw")


@dataclass(frozen=True)
class Sizes:
    """Attacks and what of theirs is varied, most steps where it is not N that varies, images of C&W
    and its options.
    """

    varied: tuple[str, ...]
    probabilities: tuple[float, ...]
    steps: tuple[int, ...]
    step_sizes: tuple[float, ...]
    most_steps: int
    cw_images: int
    cw: Settings


#: C&W with fewer searches, which start nearer to where they end.
FEW = {"search_steps": 3, "initial_c": 0.1}
SETTINGS = {
    "smoke": Sizes(("mdifgsm",), (1,), (2,), (), 2, 8, {"steps": 3, **FEW}),
    "small": Sizes(("mdifgsm",), (0.2, 0.8, 1), (5, 20), (3,), 10, 12, {"steps": 30, **FEW}),
    "paper": Sizes(
        ("difgsm", "mdifgsm"),
        (0.2, 0.4, 0.6, 0.8, 1),
        (15, 19, 23, 27, 31),
        (15, 5, 3, 1, 0.5),
        18,
        1_000,
        {},
    ),
}
#: Inc-v3 onto Inc-v4 in table 1; the mean over all seven held-out networks in table 3.
PAPER_SINGLE = {"fgsm": 0.235, "ifgsm": 0.148, "difgsm": 0.355, "mifgsm": 0.366, "mdifgsm": 0.639}
PAPER_HELD_OUT = {"ifgsm": 0.251, "difgsm": 0.508, "mifgsm": 0.460, "mdifgsm": 0.631}
#: Inc-v3 onto Inc-v4 in table 2.
PAPER_CW = {"cw": 0.057, "d-cw": 0.168}


def points_of(arena: Field, settings: Sizes) -> dict[str, Call]:
    """All measurements."""
    given = moved(arena, settings)
    family: dict[str, Settings] = dict.fromkeys(FAMILY, given)
    family["fgsm"] = {}  # it has one step
    points = {
        "family": arena.point(family, held_out=True),
        # C&W has no radius: it may go anywhere.
        "optimised": arena.point(
            dict.fromkeys(OPTIMISED, settings.cw),
            images=min(settings.cw_images, arena.images),
            epsilon=1000,
        ),
    }
    for attack in settings.varied:
        varied = {f"p {p:g}": {**given, "gradient.probability": p} for p in settings.probabilities}
        varied |= {f"N {steps}": moved(arena, settings, steps) for steps in settings.steps}
        for size in settings.step_sizes:
            steps = max(1, round(arena.epsilon / PIXEL / size))
            varied[f"alpha {size:g}"] = {"steps": steps, "step_size": size * PIXEL}
        points |= {
            f"{attack} {label}": arena.point({attack: changes}, held_out=True)
            for label, changes in varied.items()
        }
    return points


def moved(arena: Field, settings: Sizes, steps: int | None = None) -> dict[str, Any]:
    """N = min(eps + 4, 1.25 eps) steps of 1/255, or so many; where these do not reach eps, longer
    ones that reach as far as N do.
    """
    epsilon = arena.epsilon / PIXEL
    reach = int(min(epsilon + 4, 1.25 * epsilon))
    steps = steps or min(reach, settings.most_steps)
    reached = steps >= epsilon - 1e-6
    return {"steps": steps, "step_size": PIXEL * (1 if reached else max(1, reach / steps))}


def run(arguments: list[str]) -> None:
    """Run the study."""
    study = Study("input_diversity", __doc__, arguments, "imagenet")
    arena, settings = field(study.scale), SETTINGS[study.scale.name]
    results = study.run(points_of(arena, settings))
    columns = ("attack", "source", *arena.models, "mean black box", "paper")
    rows = [
        row
        for label, attacks, paper in (
            ("family", FAMILY, PAPER_SINGLE),
            ("optimised", OPTIMISED, PAPER_CW),
        )
        for attack in attacks
        for row in _rows(arena, results[label], attack, paper[attack])
    ]
    rows += [_held_out(arena, results["family"], attack) for attack in FAMILY]
    family = results["family"]
    series: dict[str, list[tuple[float, float]]] = {}
    for attack in settings.varied:
        # Without diversity an attack is the one of the same name without "di"; the family's own has
        # p = 0.5.
        points = {
            0.0: (family, {"difgsm": "ifgsm", "mdifgsm": "mifgsm"}[attack]),
            0.5: (family, attack),
        }
        points |= {p: (results[f"{attack} p {p:g}"], attack) for p in settings.probabilities}
        for p, (point, name) in sorted(points.items()):
            for told_as, black_box in (("held out", True), ("ensemble", False)):
                rate = arena.mean(point, name, black_box, True)
                series.setdefault(f"{attack}, {told_as}", []).append((p, rate))
    for label, point in results.items():
        if " " in label:
            attack, kind, value = label.split()
            rows.append(_varied(arena, point, attack, f"{kind} = {value}"))
    single = {attack: arena.mean(family, attack, True) for attack in FAMILY}
    holds = {
        "momentum raises transfer": single["mifgsm"] > single["ifgsm"],
        "diversity raises transfer": single["difgsm"] > single["ifgsm"],
        "both together are best": single["mdifgsm"] == max(single.values()),
        "an ensemble transfers better than one network": (
            arena.mean(family, "mdifgsm", True, True) > single["mdifgsm"]
        ),
    }
    notes = (
        (
            f"{counted(family)} Iterated attacks: {moved(arena, settings)['steps']} steps where N"
            " is not varied. Cells: success rate onto the column's model. Mean black box: over"
            " pairs of models, or over held-out models."
        ),
        "Claims of the paper, by the mean black-box rates here: "
        + "; ".join(
            f"{claim}: {'holds' if holds_here else 'does not hold'}"
            for claim, holds_here in holds.items()
        )
        + ". Whether a difference is more than chance, the intervals of the cells say.",
    )
    study.write(
        columns,
        rows,
        lines(series, "transformation probability p", "success rate"),
        notes,
        arena.setting,
        arena.epsilon,
    )


def _rows(arena: Field, point: dict[str, Any], attack: str, paper: float) -> list[tuple[str, ...]]:
    """One row for each source."""
    mean = arena.mean(point, attack, True)
    return [
        (
            attack,
            source,
            *(with_interval(arena.rate(point, attack, source, target)) for target in arena.models),
            percent(mean),
            f"Inc-v3 onto Inc-v4: {percent(paper)}",
        )
        for source in arena.models
    ]


def _held_out(arena: Field, point: dict[str, Any], attack: str) -> tuple[str, ...]:
    """Each model under images that were crafted on all others."""
    cells = (
        with_interval(arena.rate(point, attack, HELD_OUT + target, target))
        for target in arena.models
    )
    paper = PAPER_HELD_OUT.get(attack)
    mean = percent(arena.mean(point, attack, True, True))
    return (
        attack,
        "all others",
        *cells,
        mean,
        f"mean of table 3: {percent(paper)}" if paper else "-",
    )


def _varied(arena: Field, point: dict[str, Any], attack: str, what: str) -> tuple[str, ...]:
    cells = (
        with_interval(arena.rate(point, attack, HELD_OUT + target, target))
        for target in arena.models
    )
    mean = percent(arena.mean(point, attack, True, True))
    return (f"{attack}, {what}", "all others", *cells, mean, NOT_AVAILABLE)


if __name__ == "__main__":
    main(run)
