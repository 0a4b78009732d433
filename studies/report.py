"""What a study leaves: study.json, study.md and study.png."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from robusttrain.core.console import console, say
from robusttrain.evaluation.plan import EvaluationPlan
from robusttrain.evaluation.report import AttackFigures, Results
from robusttrain.evaluation.report import Figure as Accuracy
from robusttrain.reporting.canvas import canvas, png
from robusttrain.storage.files import write_json, write_whole
from studies.plans import Call, Job
from studies.scales import EPSILON, typed
from studies.study import Study

#: Where the paper has only a plot: its values are not invented.
NOT_AVAILABLE = "read off the plot: not available"


def write(
    study: Study,
    columns: Sequence[str],
    rows: Sequence[Sequence[object]],
    figure: Figure,
    notes: Sequence[str] = (),
    setting: str | None = None,
    epsilon: float = EPSILON,
) -> None:
    """Write the three files.

    Args:
        study: that was run.
        columns: of the table.
        rows: of the table, one value for each column.
        figure: for study.png.
        notes: sentences that a reader of the figures must know.
        setting: what stands under the title in place of the adversarial transformation's settings.
        epsilon: radius of the threat, Linf.
    """
    scale = study.scale
    plans = [job.work for job in study.points.values()]
    evaluated = {plan.images for plan in plans if isinstance(plan, EvaluationPlan)}
    images = sorted(count for count in evaluated if count) or [scale.images]
    settings = {
        "about": scale.about,
        "data": " ".join(typed(scale.data)),
        "f_a": " ".join(typed(scale.model)),
        "training": (
            f"preset {scale.recipe}, {scale.epochs} epochs of {scale.short_images:,} images, seed 0"
        ),
        "f_b": scale.f_b or f"trained here, preset {scale.f_b_recipe}, {scale.f_b_epochs} epochs",
        "adversarial training": f"{scale.inner_steps} steps",
        "attack options": " ".join(typed(scale.attack, "--attack.")) or "those of the presets",
    }
    threat = {"norm": "linf", "epsilon": epsilon}
    content = {
        "study": study.name,
        "title": study.title,
        "command": study.command,
        "scale": scale.name,
        "settings": {"about": scale.about, "setting": setting} if setting else settings,
        "threat": threat,
        "images": images,
        "draws": scale.draws,
        "notes": list(notes),
        "table": [dict(zip(columns, map(str, row), strict=True)) for row in rows],
        "points": {label: condensed(described(job), threat) for label, job in study.points.items()},
    }
    setting = setting or (
        f"{' or '.join(f'{count:,}' for count in images)} test images, {scale.draws} draws of g for"
        f" an image's score; adversarial training with {scale.inner_steps} steps. Training:"
        f" {settings['training']}; f_b: {settings['f_b']}."
    )
    table = markdown(columns, rows)
    head = f"Scale {scale.name}: {scale.about}. Linf, epsilon {epsilon:g}; {setting}"
    text = [f"## {study.title}", "", head, "", f"    {study.command}", "", *table, "", *notes]
    write_whole(study.output / "study.png", png(figure))
    write_whole(study.output / "study.md", ("\n".join(text).rstrip() + "\n").encode())
    write_json(content, study.output / "study.json")
    console.print("\n".join(table), soft_wrap=True, highlight=False, markup=False)
    say(f"written: {study.output}/study.json, study.md, study.png")


#: Of a point: what is to be looked at, and what its own folder says of where and how it ran.
LEFT_OUT = {
    *("pictures", "classes"),
    *("schema", "target", "weights", "data", "indices", "processor", "versions", "plan"),
}


def described(job: Job) -> dict[str, Any]:
    """All that came out of a point, with the command that repeats it."""
    account = job.account()
    if isinstance(job.work, Call):
        figures = account["found"]
        command = f"{job.work.function.__name__}({dict(job.work.arguments)})"
    else:
        figures, command = job.result().json, f"python evaluate.py --again {job.folder}"
    key = job.name.rpartition("-")[2]
    return {**figures, "key": key, "command": command, "seconds": account["seconds"]}


def condensed(point: Mapping[str, Any], threat: Mapping[str, Any]) -> dict[str, Any]:
    """What a report tells of a point: every figure, but no pictures and nothing twice.

    An estimate is ``[value, low, high, images]``. A matrix has a row of them for each source, one
    for each of its ``targets``, with the number of images beside the rows where it is one for all.
    The folder that the point was kept in says more, and in more digits.
    """
    usual = {"threat": dict(threat), "audit": [], "left_out": {}, "survivors": False}
    short = {
        name: _shortened(value)
        for name, value in point.items()
        if name not in LEFT_OUT and (name not in usual or usual[name] != value)
    }
    models = short.get("models")
    if models and all("defense" in model for model in models.values()):
        short["models"] = [*models]  # how they are built stands in their checkpoints
    return short


def _shortened(value: Any) -> Any:
    if isinstance(value, list | tuple):
        return [
            float(f"{item:.4g}") if isinstance(item, float) else _shortened(item) for item in value
        ]
    if not isinstance(value, Mapping):
        return value
    if value.keys() == {"value", "ci95", "images"}:
        return _shortened([value["value"], *(value["ci95"] or (None, None)), value["images"]])
    short = {name: _shortened(item) for name, item in value.items()}
    if isinstance(seconds := short.get("seconds"), dict):  # of each source
        short["seconds"] = round(sum(seconds.values()), 1)
    return _matrix(short) if "cells" in short else short


def _matrix(short: dict[str, Any]) -> dict[str, Any]:
    """A matrix of estimates, with its targets and the number of images named once."""
    rows = short["cells"]
    targets = list(next(iter(rows.values()), {}))
    if any(list(row) != targets for row in rows.values()):
        return short
    cells = {name: list(row.values()) for name, row in rows.items()}
    counts = {cell[-1] for row in cells.values() for cell in row}
    if len(counts) == 1:
        cells = {name: [cell[:-1] for cell in row] for name, row in cells.items()}
        short["images"] = counts.pop()
    return {**short, "targets": targets, "cells": cells}


def markdown(columns: Sequence[str], rows: Sequence[Sequence[object]]) -> list[str]:
    """A table's lines."""
    lines = ["| " + " | ".join(columns) + " |", "|" + "---|" * len(columns)]
    return lines + ["| " + " | ".join(str(value) for value in row) + " |" for row in rows]


def percent(value: float | None, interval: Sequence[float] | None = None) -> str:
    """An accuracy for the table."""
    if interval is not None:
        return str(Accuracy(value, *interval))
    return "-" if value is None else f"{100 * value:.1f} %"


def panel(height: float = 4.0) -> tuple[Figure, Axes]:
    """A figure of one panel."""
    figure = canvas(7, height)
    return figure, figure.subplots()


def lines(
    series: Mapping[str, Sequence[tuple[float, float]]],
    x: str,
    y: str = "accuracy",
    log: bool = False,
) -> Figure:
    """A figure with one line for each series of (x, y)."""
    figure, axes = panel()
    for name, values in series.items():
        if values:
            axes.plot(*zip(*sorted(values), strict=True), marker="o", label=name)
    axes.set(xlabel=x, ylabel=y, xscale="log" if log else "linear")
    axes.grid(alpha=0.3)
    axes.legend(fontsize="small")
    return figure


def bars(values: Mapping[str, float], title: str, label: str = "accuracy") -> Figure:
    """A figure with one bar for each value."""
    figure, axes = panel(1.5 + 0.3 * len(values))
    axes.barh(list(values)[::-1], list(values.values())[::-1])
    if label == "accuracy":
        axes.set_xlim(0, 1)
    axes.set_xlabel(label)
    axes.set_title(title, fontsize="medium")
    return figure


def only(results: Results) -> AttackFigures:
    """The figures of the one attack that was run."""
    (row,) = results.attacks.values()
    return row


def robust(results: Results) -> float:
    """The accuracy under the one attack that was run."""
    return float(only(results).robust.accuracy or 0)
