"""``report.html``: an evaluation in one file, from what lies in its folder."""

from __future__ import annotations

from pathlib import Path

from robusttrain.reporting import words
from robusttrain.reporting.certificates import certificates
from robusttrain.reporting.curves import over_effort, over_epsilon
from robusttrain.reporting.details import audit, base, cost, knowledge, repeat, threat, versions
from robusttrain.reporting.html import Html, in_bytes, joined, page, section, tag
from robusttrain.reporting.per_image import fallen, per_class
from robusttrain.reporting.runs import WORST, Run, damaged, read_run
from robusttrain.reporting.svg import Bar, bars
from robusttrain.storage.files import writable, write_whole

#: Of the file beside results.json.
NAME = "report.html"


def write_report(path: str | Path) -> Path:
    """Write ``report.html`` beside a results.json; where it was written.

    Args:
        path: of the results.json, or of its folder.

    Raises:
        UserError: no results there, or damaged ones.
    """
    run = read_run(path)
    file = run.folder / NAME
    writable(run.folder, "report", file)
    write_whole(file, in_bytes(report(run)))
    return file


def report(run: Run) -> str:
    """The page of an evaluation.

    Raises:
        UserError: results with something else where a number should be.
    """
    with damaged(run.folder / "results.json"):
        return page(f"Robustness of {run.json['target']}", *_parts(run))


def _parts(run: Run) -> list[Html]:
    content = run.json
    kind = "verdict doubt" if words.doubtful(run.results) else "verdict"
    sentences = words.verdict(run.results)
    lines = [tag("p", sentence) for sentence in sentences]
    return [
        tag("h1", f"Robustness of {content['target']}"),
        tag("p", f"{content['data']}, {words.counted(content['images'])}", class_="sub"),
        tag("div", joined(lines), class_=kind),
        *(tag("p", line, class_="note") for line in run.missing),
        _accuracy(run),
        base(run),
        knowledge(run),
        certificates(run),
        over_epsilon(run),
        over_effort(run),
        per_class(run),
        fallen(run),
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
    figures = [f"{row.label}: {row.figure}" for row in rows]
    return section(
        "Accuracy under attack",
        bars(rows, "; ".join(figures)),
        tag("p", about, class_="note"),
        *left_out,
    )
