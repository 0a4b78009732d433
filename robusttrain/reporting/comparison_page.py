"""A comparison of evaluations as a table for the terminal and as a page."""

from __future__ import annotations

import math
import shlex
from collections.abc import Sequence
from pathlib import Path

from rich.markup import escape
from rich.table import Table

from robusttrain.evaluation.paired import SIGNIFICANT, Difference, in_points
from robusttrain.reporting import words
from robusttrain.reporting.comparison import doubts
from robusttrain.reporting.html import Html, in_bytes, page, section, table, tag
from robusttrain.reporting.runs import CLEAN, WORST, Run
from robusttrain.reporting.svg import Bar, bars
from robusttrain.storage.files import hash_of_tensors, write_whole

HEAD = ("", "A", "B", "B minus A (95 % interval)", "only A right", "only B right", "p")


def row_of(each: Difference) -> tuple[str, ...]:
    """A row of either table."""
    name = "no attack" if each.row == CLEAN else each.row
    figures = (str(each.before), str(each.after), each.points)
    return (name, *figures, f"{each.lost:,}", f"{each.won:,}", each.chance.removeprefix("= "))


def terminal(first: Run, other: Run, differences: Sequence[Difference]) -> Table:
    """The comparison as a table for the terminal."""
    shown = Table(title=escape(f"A: {first.folder}, B: {other.folder}"), title_justify="left")
    for name in HEAD:
        shown.add_column(name, justify="left" if not name else "right")
    for each in differences:
        shown.add_row(*map(escape, row_of(each)))
    shown.caption = f"{differences[0].how}; {words.counted(len(first.json['indices']))}"
    return shown


def sentence(first: Run, other: Run, differences: Sequence[Difference]) -> str:
    """What came out, for a reader in a hurry: of the worst case, or of no attack where there is
    none.
    """
    last = differences[-1]
    where = "in the worst case" if last.row == WORST else "without an attack"
    if math.isnan(last.p):
        return (
            f"{where[0].upper()}{where[1:]} {other.folder} and {first.folder} differ by"
            f" {last.points}, which says nothing of other images."
        )
    if not last.p < SIGNIFICANT:
        return (
            f"{where[0].upper()}{where[1:]} {other.folder} and {first.folder} differ by"
            f" {last.points}: no more than chance explains (p {last.chance})."
        )
    if last.unsure:
        return (
            f"{where[0].upper()}{where[1:]} {other.folder} and {first.folder} differ by"
            f" {last.points}: p {last.chance} speaks for a difference, but the interval holds 0, so"
            " evaluate more images."
        )
    better, worse = (other, first) if last.mean > 0 else (first, other)
    gap = last if last.mean > 0 else last.reversed
    points = in_points(gap.mean, gap.low, gap.high, ".1f")
    return (
        f"{where[0].upper()}{where[1:]} {better.folder} is right more often than {worse.folder},"
        f" by {points}; p {last.chance}."
    )


def _common(run: Run) -> str:
    """What all evaluations of a comparison share."""
    images = f"{words.counted(run.json['images'])} of {run.json['data']}"
    threat = run.json["threat"]
    return f"{images}; {words.allowed(threat)}" if threat else images


def write_page(first: Run, others: Sequence[tuple[Run, Sequence[Difference]]], file: Path) -> None:
    """Write a comparison with a first evaluation as one HTML file."""
    parts: list[Html] = [
        tag("h1", "Evaluations compared image by image"),
        tag("p", f"{_common(first)}.", class_="sub"),
        tag("p", f"A: {first.folder}. A's model: {first.json['target']}.", class_="sub"),
    ]
    for other, differences in others:
        rows = [row_of(each) for each in differences]
        shown = []
        for each, row in zip(differences, rows, strict=True):
            shown += [Bar(f"{row[0]}: A", each.before, "clean"), Bar("B", each.after)]
        # A function, or a module of another library, keeps its numbers elsewhere.
        same = first.json["weights"] == other.json["weights"] != hash_of_tensors({})
        parts.append(
            section(
                f"B: {other.folder}",
                *(tag("p", doubt, class_="note") for doubt in doubts(first, other)),
                tag("p", sentence(first, other, differences)),
                tag("p", f"B's model: {other.json['target']}.", class_="note"),
                tag("p", "Both have the same weights.", class_="note") if same else Html(""),
                table(HEAD, rows, numbers=range(1, 7)),
                bars(shown, "; ".join(f"{bar.label}: {bar.figure}" for bar in shown)),
                tag("p", f"Test: {differences[0].how}.", class_="note"),
            )
        )
    parts.append(
        tag(
            "p",
            "Only A right, only B right: images that are right in one evaluation more often than"
            " in the other. p: how often chance alone makes a difference as large; of many rows one"
            " in twenty falls below 0.05 by chance.",
            class_="note",
        )
    )
    folders = [str(run.folder) for run in (first, *(run for run, _ in others))]
    command = shlex.join(["robusttrain", "compare", *folders])
    parts.append(section("Repeat it", tag("pre", command)))
    write_whole(file, in_bytes(page("Evaluations compared", *parts)))
