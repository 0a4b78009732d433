"""The certificates of a report: two curves that enclose the robust accuracy of a smoothed
classifier.
"""

from __future__ import annotations

from robusttrain.evaluation.certificates import about, finding
from robusttrain.evaluation.report import Figure
from robusttrain.reporting.html import Html, section, table, tag
from robusttrain.reporting.runs import Run
from robusttrain.reporting.svg import Point, curve


def certificates(run: Run) -> Html:
    """Certified accuracy over the radius, and what attacks leave, where ``--certify`` asked."""
    content = run.json.get("certificates")
    if not content or not run.json["images"]:
        return Html("")
    certified, attacked, rows = [], [], []
    for point in content["points"]:
        at, label = float(point["radius"]), f"{point['radius']:g}"
        certified.append(Point(at, label, lower := Figure.of(point["certified"])))
        upper, undecided = "not attacked", ""
        if left := point["attacked"]:
            attacked.append(Point(at, label, Figure.of(left)))
            upper, undecided = str(Figure.of(left)), f"{left['undecided']:,}"
        rows.append((label, str(lower), upper, undecided))
    broken = finding(run.json)
    return section(
        "Certified accuracy",
        tag("p", broken, class_="weak") if broken else Html(""),
        curve(
            certified,
            "Euclidean radius (pixel values from 0 to 1)",
            "; ".join(f"radius {row[0]}: certified {row[1]}, attacked {row[2]}" for row in rows),
            second=attacked,
        ),
        tag(
            "p",
            "Solid: certified. Dashed: what attacks leave; it may not lie below the solid line. "
            + about(content),
            class_="note",
        ),
        table(["radius", "certified", "left by attacks", "undecided"], rows, numbers=range(4)),
    )
