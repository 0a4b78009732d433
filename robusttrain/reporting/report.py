"""``report.html``: an evaluation in one file, from what lies in its folder."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from robusttrain.evaluation.report import Figure
from robusttrain.reporting import words
from robusttrain.reporting.details import audit, cost, repeat, threat, versions
from robusttrain.reporting.html import Html, folded, joined, page, section, table, tag
from robusttrain.reporting.runs import CLEAN, WORST, Run, damaged, read_run
from robusttrain.reporting.svg import Bar, Point, bars, curve
from robusttrain.reporting.thumbnails import BUDGET, panels
from robusttrain.storage.files import write_whole

NAME = "report.html"
#: Classes that a chart has room for; of more, a table shows all.
CLASSES = 30
#: Classes that are shown at once where a table has more.
WEAKEST = 10


def write_report(path: str | Path) -> Path:
    """Write ``report.html`` beside a results.json; where it was written.

    Args:
        path: of the results.json, or of its folder.

    Raises:
        UserError: no results there, or damaged ones.
    """
    run = read_run(path)
    file = run.folder / NAME
    write_whole(file, report(run).encode())
    return file


def report(run: Run) -> str:
    """The page of an evaluation.

    Raises:
        UserError: results with something else where a number should be.
    """
    with damaged(run.folder / "results.json"):
        return page(f"Robustness of {run.json['target']}", *_parts(run))


def _parts(run: Run) -> list[Html]:
    found = run.json
    kind = "verdict doubt" if words.doubtful(run.results) else "verdict"
    sentences = words.verdict(run.results)
    lines = [tag("p", sentence) for sentence in sentences]
    return [
        tag("h1", f"Robustness of {found['target']}"),
        tag("p", f"{found['data']}, {words.counted(found['images'])}", class_="sub"),
        tag("div", joined(lines), class_=kind),
        *(tag("p", line, class_="note") for line in run.missing),
        _accuracy(run),
        _over_epsilon(run),
        _over_effort(run),
        _per_class(run),
        _fallen(run),
        threat(run),
        audit(run),
        cost(run),
        repeat(run),
        versions(run),
    ]


def _accuracy(run: Run) -> Html:
    rows = [Bar("no attack", run.results.clean, "clean")]
    rows += [Bar(name, row.robust) for name, row in run.results.attacks.items()]
    if run.results.attacks:
        rows.append(Bar(WORST, run.results.worst_case, "worst"))
    about = "Lines are 95 % intervals over images."
    if len(run.results.attacks) > 1:
        about += " Worst case: each image under the attack that is worst for it."
    if run.json["survivors"]:
        about += " Attacks were given only the images that those above had left, so each figure"
        about += " but the worst case speaks of these alone."
    left_out = [
        tag("p", f"Left out: {name}, because {why}.", class_="note")
        for name, why in run.json["left_out"].items()
    ]
    told = [f"{row.label}: {row.figure}" for row in rows]
    return section(
        "Accuracy under attack",
        bars(rows, "; ".join(told)),
        tag("p", about, class_="note"),
        *left_out,
    )


def _points(rows: Any, key: str, x: str, label: Any, own: float) -> list[Point]:
    return [
        Point(float(row[x]), label(row[key]), Figure.of(row), own=row[key] == own) for row in rows
    ]


def _chance(run: Run) -> float | None:
    classes = run.json.get("classes")
    return 1 / len(classes) if classes else None


def _over_epsilon(run: Run) -> Html:
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
    if last.accuracy is not None and last.accuracy > 0.05:
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
            "The orange point is the evaluation's own radius. An image that fell at a smaller one"
            " was not attacked again, so the curve can only fall." + _lower(run, rows) + ends,
            class_="note",
        ),
        folded("The figures", _curve_table(rows, "epsilon", label)),
    )


def _lower(run: Run, rows: Any) -> str:
    """Whether attacks of other radii or efforts broke more than the evaluation's own."""
    own = run.json["threat"]["epsilon"]
    here = [row["robust_accuracy"] for row in rows if row.get("epsilon", row.get("effort")) in (own, 1)]
    worst = run.results.worst_case.accuracy
    if not here or worst is None or here[0] is None or here[0] >= worst - 5e-7:
        return ""
    return (
        f" At its own point the curve is lower than the worst case above, {100 * here[0]:.1f} % and"
        f" not {100 * worst:.1f} %: some images fell to the attacks of a point before and to none"
        " of the evaluation's own. Trust the lower figure."
    )


def _curve_table(rows: Any, key: str, label: Any) -> Html:
    return table(
        [key, "accuracy (95 % interval)", "images attacked here", "gradient evaluations", "queries"],
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


def _over_effort(run: Run) -> Html:
    rows = (run.json.get("curves") or {}).get("effort")
    if rows:
        points = _points(rows, "effort", "planned_per_image", lambda value: f"{value:g} x", 1)
        start = Point(0, "0", run.results.clean)
        points = [start, *points] if points[0].x > 0 else points
        points = [Point(each.x, f"{each.x:,.0f}", each.figure, each.own) for each in points]
        what = (
            "The same attacks with a share of their steps or queries; the orange point is the"
            " evaluation itself. A curve that still falls at its end asks for longer attacks."
            + _lower(run, rows)
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
        part = Run(run.folder, run.results, type(run.records)({n: run.records.of(n) for n in names}))
        points.append(Point(spent, f"{spent:,.0f}", _figure(part.score(WORST)), False))
    return points


def _figure(score: torch.Tensor) -> Figure:
    from robusttrain.evaluation.scoring import wilson

    mean = min(1.0, float(score.mean()))
    return Figure(mean, *wilson(mean, len(score)))


def class_name(run: Run, number: int) -> str:
    """A class's name; its number where the file has none."""
    names = run.json.get("classes") or []
    return str(names[number]) if 0 <= number < len(names) else f"class {number}"


def _per_class(run: Run) -> Html:
    if run.records is None:
        return Html("")
    label, clean, worst = run.records.label, run.score(CLEAN), run.score(WORST)
    found = []
    for number in label.unique().tolist():
        here = label == number
        found.append((class_name(run, number), _figure(clean[here]), _figure(worst[here]), here))
    found.sort(key=lambda row: (row[2].accuracy or 0.0, row[1].accuracy or 0.0))
    rows = [
        (name, f"{int(here.sum()):,}", str(before), str(after))
        for name, before, after, here in found
    ]
    head = ["class", "images", "no attack", WORST]
    whole = table(head, rows, numbers=(1, 2, 3))
    note = tag("p", "Weakest first. Few images give wide intervals.", class_="note")
    if len(found) <= CLASSES:
        shown = [Bar(name, after, "worst") for name, _, after, _ in found]
        about = "; ".join(f"{bar.label}: {bar.figure}" for bar in shown)
        return section("Per class, in the worst case", bars(shown, about), note, folded("The figures", whole))
    return section(
        "Per class, in the worst case",
        table(head, rows[:WEAKEST], numbers=(1, 2, 3)),
        tag("p", f"The {WEAKEST} weakest of {len(rows):,} classes.", class_="note"),
        folded("All classes", whole),
    )


def _fallen(run: Run) -> Html:
    title = "Images that fell"
    if run.examples is None:
        why = "No image fell, or none was kept: earlier versions kept none." if run.results.attacks else ""
        return section(title, tag("p", why, class_="note")) if why else Html("")
    examples, attacks = run.examples
    threat: Mapping[str, Any] = run.json["threat"]
    cards, spent = [], 0
    for place in range(len(examples)):
        shown, factor = panels(examples.images[place], examples.change[place])
        spent += sum(map(len, shown))
        if spent > BUDGET:
            break
        number = int(examples.attack[place])
        attack = attacks[number] if 0 <= number < len(attacks) else f"attack {number}"
        label, before, after = (
            class_name(run, int(column[place]))
            for column in (examples.label, examples.before, examples.after)
        )
        heads = ("image", "attacked", f"change \N{MULTIPLICATION SIGN} {factor:.1f}")
        inner = [
            tag("div", Html(f'<img alt="" src="{uri}">'), tag("span", head))
            for uri, head in zip(shown, heads, strict=True)
        ]
        size = words.radius(round(float(examples.distance[place]), 4), str(threat["norm"]))
        cards.append(
            tag(
                "figure",
                tag("div", joined(inner), class_="panels"),
                tag(
                    "figcaption",
                    tag("strong", f"{before} \N{RIGHTWARDS ARROW} {after}"),
                    "" if before == label else f" (true: {label})",
                    f" {attack}, change {size}, image {int(examples.index[place])}",
                ),
                class_="card",
            )
        )
    how = (
        f"{len(cards)} of the images that the model had right and lost, drawn by the seed; each"
        " under the attack that is worst for it, with what the model answers before and after. The"
        " change is shown around grey, amplified by the factor below it."
    )
    return section(title, tag("p", how, class_="note"), tag("div", joined(cards), class_="cards"))
