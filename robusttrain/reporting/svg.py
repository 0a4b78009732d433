"""Charts as inline SVG: bars with intervals, and curves with bands. Colours are the page's."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from robusttrain.evaluation.report import Figure
from robusttrain.reporting.html import Html, html

WIDTH = 760
_LABELS, _BARS = 190, 380


@dataclass(frozen=True)
class Bar:
    """A share with its interval.

    Args:
        label: its name.
        figure: accuracy and interval.
        kind: "clean", "worst" or "", which gives the colour.
    """

    label: str
    figure: Figure
    kind: str = ""


def cut(text: str, most: int = 26) -> str:
    """A label that fits; what is cut off shows in the title beside it."""
    return text if len(text) <= most else text[: most - 1] + "\N{HORIZONTAL ELLIPSIS}"


def text(x: float, y: float, said: str, anchor: str = "start", kind: str = "") -> str:
    """A line of text."""
    return (
        f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}"'
        + (f' class="{kind}"' if kind else "")
        + f">{html(said)}</text>"
    )


def line(x1: float, y1: float, x2: float, y2: float, kind: str) -> str:
    """A straight line."""
    return f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" class="{kind}"/>'


def drawing(height: float, parts: Sequence[str], about: str) -> Html:
    """The SVG element; ``about`` is read to whoever cannot see it."""
    return Html(
        f'<div class="wide"><svg viewBox="0 0 {WIDTH} {height:.0f}" role="img"'
        + f' aria-label="{html(about)}">{"".join(parts)}</svg></div>'
    )


def bars(rows: Sequence[Bar], about: str) -> Html:
    """Shares from 0 to 100 %, one under the other, with their 95 % intervals as whiskers."""
    step, top = 30, 22

    def at(share: float) -> float:
        return _LABELS + _BARS * min(1.0, max(0.0, share))

    foot = top + step * len(rows)
    parts = []
    for tick in range(0, 101, 25):
        parts.append(line(at(tick / 100), top - 4, at(tick / 100), foot, "grid"))
        parts.append(text(at(tick / 100), 12, f"{tick} %", "middle", "faint"))
    for number, row in enumerate(rows):
        y, figure = top + step * number, row.figure
        middle = y + step / 2
        label = text(_LABELS - 10, middle + 4, cut(row.label), "end")
        parts.append(f"<g><title>{html(row.label)}: {html(str(figure))}</title>{label}")
        if figure.accuracy is not None:
            width = at(figure.accuracy) - _LABELS
            parts.append(
                f'<rect x="{_LABELS}" y="{y + 5}" width="{width:.1f}" height="{step - 10}"'
                f' class="bar {html(row.kind)}"/>'
            )
            parts.append(line(at(figure.low), middle, at(figure.high), middle, "whisker"))
            parts += [
                line(at(end), middle - 5, at(end), middle + 5, "whisker")
                for end in (figure.low, figure.high)
            ]
        parts.append(text(_LABELS + _BARS + 14, middle + 4, str(figure)) + "</g>")
    return drawing(foot + 6, parts, about)


@dataclass(frozen=True)
class Point:
    """A point of a curve.

    Args:
        x: where.
        label: on the x-axis.
        figure: accuracy and interval.
        own: whether it is the evaluation's own.
    """

    x: float
    label: str
    figure: Figure
    own: bool = False


def curve(
    points: Sequence[Point],
    x: str,
    about: str,
    chance: float | None = None,
    second: Sequence[Point] = (),
) -> Html:
    """Accuracy from 0 to 100 % over x, its 95 % interval as a band.

    Args:
        points: at least two, in the order of x.
        x: what is on the x-axis, with its unit.
        about: for whoever cannot see it.
        chance: accuracy of guessing, drawn as a dashed line.
        second: of another curve, over the same x; drawn dashed.
    """
    left, right, top, foot = 56, WIDTH - 30, 14, 254
    shown = [point for point in points if point.figure.accuracy is not None]
    if len(shown) < 2:
        return Html("")
    other = [point for point in second if point.figure.accuracy is not None]
    span = max(point.x for point in [*shown, *other]) - shown[0].x or 1.0

    def at(point: Point) -> float:
        return left + (right - left) * (point.x - shown[0].x) / span

    def high(share: float) -> float:
        return foot - (foot - top) * min(1.0, max(0.0, share))

    parts = []
    for tick in range(0, 101, 25):
        parts.append(line(left, high(tick / 100), right, high(tick / 100), "grid"))
        parts.append(text(left - 8, high(tick / 100) + 4, f"{tick} %", "end", "faint"))
    if chance is not None:
        parts.append(line(left, high(chance), right, high(chance), "chance"))
        parts.append(text(left + 6, high(chance) - 5, "guessing", "start", "faint"))
    for series, kind in ((other, " second"), (shown, "")):
        upper = [f"{at(point):.1f},{high(point.figure.high):.1f}" for point in series]
        lower = [f"{at(point):.1f},{high(point.figure.low):.1f}" for point in reversed(series)]
        means = [f"{at(point):.1f},{high(point.figure.accuracy or 0):.1f}" for point in series]
        if len(series) > 1:
            parts.append(f'<polygon points="{" ".join(upper + lower)}" class="band{kind}"/>')
            parts.append(f'<polyline points="{" ".join(means)}" class="line{kind}"/>')
        parts += [
            f'<circle cx="{at(point):.1f}" cy="{high(point.figure.accuracy or 0):.1f}" r="4.5"'
            f' class="dot{" own" if point.own else ""}{kind}"><title>{html(point.label)}:'
            f" {html(str(point.figure))}</title></circle>"
            for point in series
        ]
    last = -1000.0
    for point in shown:
        place = at(point)
        if place - last > 62:
            parts.append(text(place, foot + 18, point.label, "middle", "faint"))
            last = place
    parts.append(text((left + right) / 2, foot + 40, x, "middle"))
    return drawing(foot + 48, parts, about)
