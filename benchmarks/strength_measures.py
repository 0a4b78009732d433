"""The measures of `benchmarks.strength`: curves, the best of all, optimality, and who is first."""

from __future__ import annotations

import statistics
from typing import Any

import numpy as np

from benchmarks.strength_contender import NAMES, Contender

#: Within so much of the first: points of accuracy, or a share of the distance.
NEAR = 0.01
#: What is measured of each model and norm.
MEASURES = ("robust_accuracy", "median_distance")


def numbers(row: list[float | None]) -> list[float]:
    """Distances, infinite where there is none."""
    return [float("inf") if far is None else far for far in row]


def accuracy(distances: list[float], radius: float) -> float:
    """Share of images without an adversarial point within the radius."""
    return sum(far > radius * (1 + 1e-4) + 1e-5 for far in distances) / len(distances)


def area(accuracies: list[float], budgets: list[int]) -> float:
    """Integral of 1 - accuracy over the logarithm of queries; of one budget, 1 - accuracy."""
    fell = [1 - each for each in accuracies]
    if len(fell) == 1:
        return fell[0]
    return float(np.trapezoid(fell, np.log(budgets)))


def optimality_of_distances(distances: list[float], best: list[float]) -> float:
    """Share of the area above the best of all's curve of robust accuracy over the radius."""
    reached = [far for far in best if far < float("inf")]
    if not reached:
        return 1.0
    end = max(reached)
    whole = sum(end - far for far in reached)
    return sum(max(0.0, end - far) for far in distances) / whole if whole else 1.0


def curves(
    rows: dict[Contender, dict[int, list[float]]], budgets: list[int], radius: float
) -> dict[str, Any]:
    """Both measures of one model and norm: values for each budget, optimality, and who is first."""
    best = {
        budget: [min(far) for far in zip(*(row[budget] for row in rows.values()), strict=True)]
        for budget in budgets
    }
    robust = {
        each.title: [accuracy(row[budget], radius) for budget in budgets]
        for each, row in rows.items()
    }
    envelope = [accuracy(best[budget], radius) for budget in budgets]
    whole = area(envelope, budgets)
    seeking = {each: row for each, row in rows.items() if each.nearest}
    nearest = {
        each.title: [statistics.median(row[budget]) for budget in budgets]
        for each, row in seeking.items()
    }
    last = {
        budget: [min(far) for far in zip(*(row[budget] for row in seeking.values()), strict=True)]
        for budget in budgets
    }
    return {
        "robust_accuracy": {
            "curves": robust,
            "best_of_all": envelope,
            "optimality": {
                name: area(row, budgets) / whole if whole else 1.0 for name, row in robust.items()
            },
            "first": [first(robust, place, absolute=True) for place in range(len(budgets))],
        },
        "median_distance": {
            "curves": nearest,
            "best_of_all": [statistics.median(last[budget]) for budget in budgets if last[budget]],
            "optimality": {
                each.title: optimality_of_distances(row[budgets[-1]], last[budgets[-1]])
                for each, row in seeking.items()
            },
            "first": [first(nearest, place, absolute=False) for place in range(len(budgets))],
        },
    }


def first(rows: dict[str, list[float]], place: int, absolute: bool) -> dict[str, Any]:
    """Our best and the peers' best at one budget, and whether ours is first or within `NEAR`."""
    at = {name: row[place] for name, row in rows.items()}
    mine = {name: value for name, value in at.items() if name.endswith("(ours)")}
    theirs = {name: value for name, value in at.items() if name not in mine}
    ours, peer = (min(some, key=some.__getitem__) if some else None for some in (mine, theirs))
    limit = float("inf")
    if peer is not None:
        limit = theirs[peer] + NEAR if absolute else theirs[peer] * (1 + NEAR)
    value = None if ours is None else mine[ours]
    return {
        "ours": ours,
        "value": value,
        "peer": peer,
        "peers_value": None if peer is None else theirs[peer],
        "within_1_percent": value is not None and value <= limit + 1e-9,
    }


def compact(value: Any) -> Any:
    """Numbers to four digits; what is infinite is None."""
    if isinstance(value, dict):
        return {key: compact(each) for key, each in value.items()}
    if isinstance(value, list):
        return [compact(each) for each in value]
    if isinstance(value, float):
        return round(value, 4) if abs(value) < float("inf") else None
    return value


def table(report: dict[str, Any]) -> str:
    """Who is first, budget by budget."""
    lines = []
    for model, norms in report["models"].items():
        for norm, part in norms.items():
            for measure in MEASURES:
                if not part[measure]["curves"]:  # nobody there looks for the nearest
                    continue
                lines.append(f"{model}, {NAMES[norm]}, {measure.replace('_', ' ')}:")
                for budget, row in zip(part["budgets"], part[measure]["first"], strict=True):
                    verdict = "yes" if row["within_1_percent"] else "NO"
                    lines.append(
                        f"  {budget:5d}  {row['ours']} {row['value']}   {row['peer']}"
                        f" {row['peers_value']}   {verdict}"
                    )
    return "\n".join(lines)


def firsts(report: dict[str, Any], measure: str) -> str:
    """Markdown: ours and the peers' best at each budget, bold where ours is neither first nor
    within `NEAR`; a row for each model and norm.
    """
    robust = measure == "robust_accuracy"
    title = "robust accuracy, %" if robust else "median distance"
    lines = [f"| {title} | images | queries | ours / best peer |", "|---|---|---|---|"]
    for model, norms in report["models"].items():
        for norm, part in norms.items():
            if not part[measure]["curves"]:
                continue
            cells = []
            for row in part[measure]["first"]:
                pair = " / ".join(_shown(row[key], robust) for key in ("value", "peers_value"))
                cells.append(pair if row["within_1_percent"] else f"**{pair}**")
            radius = f" ({part['radius']:g})" if robust else ""
            queries = ", ".join(f"{budget:,}" for budget in part["budgets"])
            name = f"{model}, {NAMES[norm]}{radius}"
            images = f"{part['images']}"
            if part.get("runs", 1) > 1:
                images += f", {part['runs']} runs"
            lines.append(f"| {name} | {images} | {queries} | {', '.join(cells)} |")
    return "\n".join(lines)


def _shown(value: float | None, robust: bool) -> str:
    if value is None:
        return "-"
    return f"{100 * value:.1f}" if robust else f"{value:.4f}"


def shares(report: dict[str, Any], measure: str) -> str:
    """Markdown: the optimality of each implementation in one measure, by model and norm, the
    highest mean first.
    """
    columns = [(model, norm) for model, norms in report["models"].items() for norm in norms]
    rows: dict[str, dict[tuple[str, str], float]] = {}
    for model, norm in columns:
        for name, share in report["models"][model][norm][measure]["optimality"].items():
            rows.setdefault(name, {})[model, norm] = share
    table = [["implementation", *(f"{model}, {NAMES[norm]}" for model, norm in columns)]]
    for name, row in sorted(rows.items(), key=lambda each: -statistics.mean(each[1].values())):
        table.append([name, *(f"{row[each]:.3f}" if each in row else "" for each in columns)])
    lines = [f"| {' | '.join(cells)} |" for cells in table]
    return "\n".join([lines[0], "|---" * len(table[0]) + "|", *lines[1:]])
