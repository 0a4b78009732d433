"""Robustness per hour: what a stated time of training leaves under AutoAttack.

One run of ``--training budget`` for each time, nothing chosen on test images: its last weights are
attacked. Run it alone on the machine: other work makes a planned epoch longer, and the run with it.
What each ingredient of the recipe adds is asked by `studies.ingredients`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from matplotlib.figure import Figure

from robusttrain.commands.entry import main
from robusttrain.core.processor import processor
from robusttrain.reporting.canvas import canvas
from robusttrain.running.jobs import Call, Job
from robusttrain.storage.files import write_whole
from studies.recipes import curves
from studies.scales import Scale, Settings
from studies.study import Study

#: Radius of the threat: the one of RobustBench and of N-FGSM's paper.
EPSILON = 8 / 255
OBJECTIVE = "training.objective"


def node(name: str, **arguments: Any) -> dict[str, Any]:
    """A part of robusttrain and its arguments."""
    return {"class_path": f"robusttrain.{name}", "init_args": arguments}


THREAT = node("attacks.Linf", epsilon=EPSILON)
SINGLE = node("training.NFGSM", threat=THREAT)
#: Of every training at scale small, and in a word.
ABOUT = "CIFAR-10 (JPEG), a ResNet of 0.95 M parameters whose first convolution has stride 2"
SMALL: Settings = {
    **{"model": "resnet_strided", "robust.images": 500},
    **{"trainer.limit_train_batches": None, "trainer.precision": "bf16-mixed"},
}


@dataclass(frozen=True)
class Sizes:
    """What a scale does.

    Args:
        minutes: of the runs.
        images: test images that are attacked.
        attack: preset.
        changes: options of every training.
    """

    minutes: tuple[float, ...]
    images: int
    attack: str = "autoattack"
    changes: Settings = field(default_factory=dict)


SETTINGS = {
    "smoke": Sizes((0.05,), 8, "pgd", {"robust.images": 8, "data.validation": 0.1}),
    "digits": Sizes((0.5, 2), 297, changes={"data.validation": 0.1}),
    "small": Sizes((20, 60, 180), 1000, changes=SMALL),
    "paper": Sizes((20, 60, 180), 1000, changes={"robust.images": 500}),
}


def run(arguments: list[str]) -> None:
    """Run the study."""
    study = Study("budget", __doc__, arguments, "digits")
    scale, sizes = study.scale, SETTINGS[study.scale.name]
    if scale.name == "small":
        scale.about = ABOUT
    runs = {minutes: timed(scale, sizes, minutes) for minutes in sizes.minutes}
    points: dict[str, Any] = {}
    for minutes, job in runs.items():
        name, how = f"{minutes:g} minutes", {"images": sizes.images, "epsilon": EPSILON}
        points[name] = scale.attacked(job, sizes.attack, draws=1, **how)  # type: ignore[arg-type]
        points[f"{name}, curves"] = Call(curves, {"model": job.name}, {"logs": str(study.logs)})
    results = study.run(points)

    rows = []
    for minutes in runs:
        found = results[f"{minutes:g} minutes"]
        epochs = len(results[f"{minutes:g} minutes, curves"]["robust/worst_case"])
        rows.append((f"{minutes:g}", epochs, found.clean, found.worst_case, "not at hand"))
    columns = ("minutes", "epochs", "clean", sizes.attack, "the paper, for this network")
    setting = (
        f"{sizes.images:,} test images under {sizes.attack}; preset budget at the same radius, last"
        " weights, seed 0"
    )
    figures = [_row(minutes, results[f"{minutes:g} minutes"], study) for minutes in runs]
    text = "[\n" + ",\n".join(map(json.dumps, figures)) + "\n]\n"
    write_whole(study.output / "budget.json", text.encode())
    notes = ("The last weights are attacked; nothing is chosen on test images.",)
    study.write(columns, rows, picture(results, runs), notes, setting, EPSILON)


def timed(scale: Scale, sizes: Sizes, minutes: float) -> Job:
    """The training that takes so long."""
    options = recipe(scale, sizes.changes, minutes)
    return scale.job(f"budget-{minutes:g}-minutes", options, 1)


def recipe(scale: Scale, changes: Settings, minutes: float | None) -> dict[str, Any]:
    """Options of a training for so many minutes; None leaves its length to the caller."""
    own = {"training": "budget", "training.minutes": minutes, OBJECTIVE: SINGLE, "robust.every": 1}
    return {**scale.data, **scale.model, **scale.more, **own, **changes}


def _row(minutes: float, found: Any, study: Study) -> dict[str, Any]:
    """Of ``budget.json``."""
    return {
        "minutes": minutes,
        "clean": round(100 * found.clean.accuracy, 1),
        "autoattack": round(100 * found.worst_case.accuracy, 1),
        "images": found.json["images"],
        "processor": {**processor(torch.device("cpu")), "threads": torch.get_num_threads()},
        "command": study.command,
    }


def picture(results: Mapping[str, Any], runs: Mapping[float, Job]) -> Figure:
    """Accuracy under PGD on validation images over the minutes of each run, and what is left under
    attack of the test images.
    """
    figure = canvas(7, 5)
    axes, earliest = figure.subplots(), max(runs)
    for minutes in runs:
        values = results[f"{minutes:g} minutes, curves"]["robust/worst_case"]
        times = [minutes * (1 + epoch) / len(values) for epoch in range(len(values))]
        earliest = min(earliest, *times)
        (line,) = axes.plot(times, values, marker=".", label=f"{minutes:g} minutes, PGD-10")
        left = results[f"{minutes:g} minutes"].worst_case.accuracy
        axes.plot([minutes], [left], "*", color=line.get_color(), markersize=12)
    axes.set_xscale("log")
    longest = max(runs)
    ticks = [
        each for each in (0.01, 0.1, 0.5, 1, 2, 5, 10, 20, 60, 180) if earliest <= each <= longest
    ]
    axes.set_xticks(ticks, [f"{each:g}" for each in ticks], minor=False)
    axes.minorticks_off()
    axes.set_xlabel("minutes (stars: test images under AutoAttack)")
    axes.set_ylabel("robust accuracy")
    axes.set_ylim(bottom=0)
    axes.grid(alpha=0.3)
    axes.legend()
    return figure


if __name__ == "__main__":
    main(run)
