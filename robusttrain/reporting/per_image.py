"""The parts of a report that need verdicts of single images: classes, and images that fell."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from robusttrain.evaluation.records import CLEAN
from robusttrain.evaluation.report import Figure
from robusttrain.reporting import words
from robusttrain.reporting.html import Html, folded, joined, section, table, tag
from robusttrain.reporting.runs import WORST, Run
from robusttrain.reporting.svg import Bar, bars
from robusttrain.reporting.thumbnails import BUDGET, panels

#: Classes that a chart has room for; of more, a table shows all.
CLASSES = 30
#: Classes that are shown at once where a table has more.
WEAKEST = 10


def class_name(run: Run, number: int) -> str:
    """A class's name; its number where the file has none. -1 is an answer that names no class."""
    if number == -1:
        return "no class"
    names = run.json.get("classes") or []
    return str(names[number]) if 0 <= number < len(names) else f"class {number}"


def per_class(run: Run) -> Html:
    """Accuracy of each class, weakest first."""
    if run.records is None:
        return Html("")
    label, clean, worst = run.records.label, run.score(CLEAN), run.score(WORST)
    classes = []
    for number in label.unique().tolist():
        here = label == number
        name = class_name(run, number)
        classes.append((name, Figure.over(clean[here]), Figure.over(worst[here]), here))
    classes.sort(key=lambda row: (row[2].accuracy or 0.0, row[1].accuracy or 0.0))
    rows = [
        (name, f"{int(here.sum()):,}", str(before), str(after))
        for name, before, after, here in classes
    ]
    title = "Per class, in the worst case"
    head = ["class", "images", "no attack", WORST]
    whole = table(head, rows, numbers=(1, 2, 3))
    note = tag("p", "Weakest first. Few images give wide intervals.", class_="note")
    if len(classes) <= CLASSES:
        shown = [Bar(name, after, "worst") for name, _, after, _ in classes]
        about = "; ".join(f"{bar.label}: {bar.figure}" for bar in shown)
        return section(title, bars(shown, about), note, folded("The figures", whole))
    return section(
        title,
        table(head, rows[:WEAKEST], numbers=(1, 2, 3)),
        tag("p", f"The {WEAKEST} weakest of {len(rows):,} classes.", class_="note"),
        folded("All classes", whole),
    )


def fallen(run: Run) -> Html:
    """Some of the images that were right and fell."""
    title = "Images that fell"
    if run.examples is None:
        why = (
            "No image fell, or none was kept: earlier versions kept none."
            if run.results.attacks
            else ""
        )
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
