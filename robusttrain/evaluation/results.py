"""Results: the figures from the records of all images, and their table."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from rich.markup import escape
from rich.table import Table
from torch import Tensor

from robusttrain.attacks.parts.threats import described
from robusttrain.evaluation.covering import is_no_bound
from robusttrain.evaluation.engine import Engine
from robusttrain.evaluation.records import CLEAN, Records, Rows
from robusttrain.evaluation.scoring import median, wilson, worst_case


def figure(scores: Tensor, name: str = "robust_accuracy") -> dict[str, Any]:
    """A row of results.json: the mean of scores (n,) in [0, 1], or of verdicts, with its interval
    over images.
    """
    if not len(scores):
        return {name: None, "ci95": wilson(0.0, 0)}
    mean = scores.double().mean().item()
    return {name: round(mean, 6), "ci95": [round(end, 6) for end in wilson(mean, len(scores))]}


def alike(one: Any, other: Any) -> bool:
    """Whether two parts of results.json hold the same, up to what is rounded off."""
    if isinstance(one, Mapping) and isinstance(other, Mapping):
        return one.keys() == other.keys() and all(alike(one[key], other[key]) for key in one)
    if isinstance(one, list | tuple) and isinstance(other, list | tuple):
        return len(one) == len(other) and all(map(alike, one, other))
    if isinstance(one, float | int) and isinstance(other, float | int):
        return abs(one - other) < 1e-5
    return bool(one == other)


def figures(rows: Rows, clean: Rows, survivors: bool) -> dict[str, Any]:
    """What results.json says of an attack as far as the verdicts give it.

    Args:
        rows: of the attack.
        clean: of the images as they are.
        survivors: whether an image that fell was spared the attacks that followed.
    """
    among, score = rows.judged(survivors), rows.right
    # Images that were right before the attack, on draws that do not score.
    reached = (clean.chosen_by > 0.5) & among
    fell = reached & (score <= 0.5)

    def per_image(spent: Tensor) -> float:
        of_attacked = spent[rows.attacked].double()
        return round(of_attacked.mean().item(), 3) if len(of_attacked) else 0.0

    return {
        **figure(score[among]),
        "success_rate": round(1 - score[reached].mean().item(), 6) if reached.any() else None,
        "success_rate_of": int(reached.sum()),
        "largest_perturbation": round(rows.distance.max().item(), 6) if len(rows) else 0.0,
        # Of images that were right, and fell.
        "median_perturbation": round(median(rows.distance[fell]), 6) if fell.any() else None,
        "gradient_evaluations_per_image": per_image(rows.gradients),
        "queries_per_image": per_image(rows.queries),
    }


def results(records: Records, engine: Engine, seconds: Mapping[str, float]) -> dict[str, Any]:
    """The figures of an evaluation, in the order of results.json.

    Args:
        records: of all images.
        engine: the engine that produced the records.
        seconds: spent by attack, over all processes.
    """
    score = {name: rows.right for name, rows in records.rows.items()}
    select = {name: rows.chosen_by for name, rows in records.rows.items()}
    attacks: dict[str, Any] = {}
    so_far = [CLEAN]
    for name, scenario in engine.scenarios.items():
        rows = records.of(name)
        so_far.append(name)
        attacks[name] = {
            **figures(rows, records.of(CLEAN), engine.survivors),
            "seconds": round(seconds.get(name, 0.0), 2),
            "knows": scenario.knowledge_of(engine.target),
        }
        if engine.survivors:
            worst = worst_case(
                *(torch.stack([shares[each] for each in so_far]) for shares in (select, score))
            )
            attacks[name] |= {
                "images": int(rows.attacked.sum()),
                "worst_case_so_far": figure(worst)["robust_accuracy"],
            }
    threats = [scenario.attack.threat for scenario in engine.scenarios.values()]
    return {
        "threat": described(threats[0]) if threats else None,
        "seed": engine.seed,
        "images": len(records),
        "draws": engine.draws,
        "random": engine.random,
        "survivors": engine.survivors,
        "clean": figure(score["clean"], "accuracy"),
        "attacks": attacks,
        "worst_case": figure(records.worst),
        "audit": [],
    }


def table(content: Mapping[str, Any]) -> Table:
    """The results as a table for the terminal."""
    threat = content["threat"]
    ball = f"{threat['norm']} {threat['epsilon']:g}" if threat else "no threat"
    if threat and "ball" in threat:
        ball = f"{ball} of {threat['ball']}"
    draws = f", mean of {content['draws']} draws" if content["random"] else ""
    split = (content.get("plan") or {}).get("split")
    kind = "validation images" if split == "validation" else "images"
    shown = Table(
        title=escape(
            f"{content.get('target', 'model')} on {content['images']} {kind}, {ball}{draws}"
        )
    )
    shown.add_column("attack")
    shown.add_column("accuracy", justify="right")
    shown.add_column("95 % interval", justify="right")
    shown.add_column("success", justify="right")
    if content["survivors"]:
        shown.add_column("of images", justify="right")
        shown.add_column("worst case\nso far", justify="right")
    free = bool(threat) and "ball" not in threat and is_no_bound(threat["norm"], threat["epsilon"])
    if free:
        shown.add_column("median\nchange", justify="right")
    shown.add_column("gradients\nper image", justify="right")
    shown.add_column("seconds", justify="right")
    shown.add_column("attacker knows")

    def interval(row: Mapping[str, Any]) -> str:
        return f"{100 * row['ci95'][0]:.1f} - {100 * row['ci95'][1]:.1f}"

    clean, worst = content["clean"], content["worst_case"]
    handed_on = content["survivors"]
    blank = [""] * (2 * handed_on + free)
    shown.add_row(
        "none (clean)",
        f"{100 * clean['accuracy']:.1f} %",
        interval(clean),
        "",
        *blank,
        "",
        "",
        "",
    )
    for name, row in content["attacks"].items():
        success = "-" if row["success_rate"] is None else f"{100 * row['success_rate']:.1f} %"
        shown.add_row(
            escape(name),
            "-" if row["robust_accuracy"] is None else f"{100 * row['robust_accuracy']:.1f} %",
            interval(row),
            f"{success} of {row['success_rate_of']}",
            *([str(row["images"]), f"{100 * row['worst_case_so_far']:.1f} %"] if handed_on else []),
            *([_size(row.get("median_perturbation"))] if free else []),
            f"{row['gradient_evaluations_per_image']:g}",
            f"{row['seconds']:.1f}",
            escape(row["knows"]),
        )
    shown.add_section()
    shown.add_row(
        "worst case",
        f"{100 * worst['robust_accuracy']:.1f} %",
        interval(worst),
        "",
        *blank,
        "",
        "",
        "",
    )
    return shown


def _size(change: float | None) -> str:
    return "-" if change is None else f"{change:.4g}"
