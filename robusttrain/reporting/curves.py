"""The curves of a report: accuracy over the radius, and over the work of the attacker."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from robusttrain.evaluation.records import CLEAN, Records
from robusttrain.evaluation.report import Figure
from robusttrain.reporting import words
from robusttrain.reporting.html import Html, folded, section, table, tag
from robusttrain.reporting.runs import WORST, Run
from robusttrain.reporting.svg import Point, curve

#: What remains at the largest radius, from which larger ones should follow.
REST = 0.05


def _points(rows: Any, key: str, x: str, label: Callable[[Any], str], own: float) -> list[Point]:
    return [
        Point(float(row[x]), label(row[key]), Figure.of(row), own=row[key] == own) for row in rows
    ]


def _chance(run: Run) -> float | None:
    classes = run.json.get("classes")
    return 1 / len(classes) if classes else None


def over_epsilon(run: Run) -> Html:
    """Accuracy over the radius, where ``--curve`` asked for it."""
    rows = (run.json.get("curves") or {}).get("epsilon")
    if not rows:
        return Html("")
    norm = str(run.json["threat"]["norm"])
    own = run.json["threat"]["epsilon"]

    def label(value: Any) -> str:
        # In levels throughout: 0.05 beside 8/255 could not be compared at a glance.
        return words.radius(float(value), norm).rpartition(" ")[2].strip("()")

    points = _points(rows, "epsilon", "epsilon", label, own)
    last = points[-1].figure
    ends = ""
    if last.accuracy is not None and last.accuracy > REST:
        ends = (
            " At the largest radius the accuracy is not yet near zero: go on to larger ones. An"
            " attack that may change an image beyond recognition must break everything."
        )
    return section(
        "Accuracy over the size of the change",
        curve(
            points,
            f"largest change allowed ({norm})",
            "; ".join(f"{point.label}: {point.figure}" for point in points),
            _chance(run),
        ),
        tag(
            "p",
            "The orange point is the evaluation's own radius. At the others, an image that fell at"
            " a smaller one was not attacked again" + _course(run) + _lower(run, points) + ends,
            class_="note",
        ),
        folded("The figures", _curve_table(rows, "epsilon", label)),
    )


def _course(run: Run) -> str:
    """Whether a figure can be above one at a smaller radius, as the end of a sentence."""
    if not run.json["random"]:
        return ", so the curve can only fall."
    return (
        ". Some draws of the model choose the worst attack and others score it, so a figure may"
        " rise a little by the luck of the draws."
    )


def _lower(run: Run, points: Sequence[Point]) -> str:
    """Whether attacks of other radii or efforts broke more than the evaluation's own."""
    here = [point.figure.accuracy for point in points if point.own]
    worst = run.results.worst_case.accuracy
    if not here or worst is None or here[0] is None or here[0] >= worst - 5e-7:
        return ""
    return (
        f" At its own point the curve is lower than the worst case above, {100 * here[0]:.1f} % and"
        f" not {100 * worst:.1f} %: some images fell to the attacks of a point before and to none"
        " of the evaluation's own. Trust the lower figure."
    )


def _curve_table(rows: Any, key: str, label: Callable[[Any], str]) -> Html:
    return table(
        [
            key,
            "accuracy (95 % interval)",
            "images attacked here",
            "gradient evaluations",
            "queries",
        ],
        [
            (
                label(row[key]),
                str(Figure.of(row)),
                f"{row['attacked']:,}",
                f"{row['gradient_evaluations']:,}",
                f"{row['queries']:,}",
            )
            for row in rows
        ],
        numbers=range(1, 5),
    )


def over_effort(run: Run) -> Html:
    """Accuracy over evaluations spent: of ``--curve_effort``, or after each attack."""
    rows = (run.json.get("curves") or {}).get("effort")
    if rows:
        points = _points(rows, "effort", "planned_per_image", lambda value: f"{value:g} x", 1)
        start = Point(0, "0", run.results.clean)
        points = [start, *points] if points[0].x > 0 else points
        points = [Point(each.x, f"{each.x:,.0f}", each.figure, each.own) for each in points]
        what = (
            "The same attacks with a share of their steps or queries; the orange point is the"
            " evaluation itself. A curve that still falls at its end asks for longer attacks."
            + _lower(run, points)
        )
        more = folded("The figures", _curve_table(rows, "effort", lambda value: f"{value:g} x"))
    else:
        points, more = _after_each(run), Html("")
        what = (
            "After each attack in turn, in the order of the chart on top: the worst case so far,"
            " over all that the attacks asked until then."
        )
    return section(
        "Accuracy over the work of the attacker",
        chart := curve(
            points,
            "gradient evaluations and queries for an image",
            "; ".join(f"{point.label}: {point.figure}" for point in points),
            _chance(run),
        ),
        tag("p", what, class_="note") if chart.text else Html(""),
        more,
    )


def _after_each(run: Run) -> list[Point]:
    """The worst case after each attack, where there are several."""
    if run.records is None or len(run.results.attacks) < 2:
        return []
    spent, points = 0.0, [Point(0, "0", run.results.clean)]
    for count, (name, row) in enumerate(run.results.attacks.items(), 1):
        share = float(run.records.of(name).attacked.double().mean())
        spent += share * (row.gradients + row.queries)
        names = [CLEAN, *list(run.results.attacks)[:count]]
        records = Records({each: run.records.of(each) for each in names})
        score = Run(run.folder, run.results, records).score(WORST)
        points.append(Point(spent, f"{spent:,.0f}", Figure.over(score)))
    return points
