"""The parts of a report for whoever wants to know how its figures came about."""

from __future__ import annotations

import json
import shlex
from pathlib import PurePath
from typing import Any

from robusttrain.core.typed import command
from robusttrain.evaluation.beside import BARE, TRANSFERRED, on_top
from robusttrain.evaluation.paired import in_points
from robusttrain.evaluation.randomness import threats
from robusttrain.evaluation.report import Figure
from robusttrain.reporting import words
from robusttrain.reporting.html import Content, Html, folded, section, table, tag
from robusttrain.reporting.runs import Run, outside
from robusttrain.storage.files import laid_out

#: Worst first.
SEVERITIES = ("masked", "weak", "not run", "note")


def threat(run: Run) -> Html:
    """The threat, and what the attacker knew."""
    content = run.json
    if not content["threat"]:
        return Html("")
    rows = []
    for name, row in run.results.attacks.items():
        class_path = str(row.preset["class_path"]).rpartition(".")[2]
        sizes = row.largest_perturbation, content["attacks"][name].get("median_perturbation")
        norm = str(content["threat"]["norm"])
        changes = ["-" if size is None else words.radius(size, norm) for size in sizes]
        rows.append((name, class_path, row.knows, *changes))
    sentences = [
        f"The attacker may make {words.allowed(content['threat'])}.",
        f"Outside, by these figures: {', '.join(left)}. One that leaves is not scored, so they were"
        " changed since."
        if (left := outside(run.results))
        else "All attacks stayed inside; one that leaves is not scored.",
    ]
    if content["random"]:
        draws = f"{content['draws']} draws that no attack has seen"
        sentences.append(f"The model is random: each image is scored over {draws}.")
    settings = [
        tag("pre", f"{name}\n{laid_out(dict(row.preset), 100)}")
        for name, row in run.results.attacks.items()
    ]
    return section(
        "The threat, and what the attacker knew",
        tag("p", " ".join(sentences)),
        table(
            [
                *("attack", "algorithm", "the attacker knows", "largest change"),
                "median change, of images that fell",
            ],
            rows,
            numbers=(3, 4),
        ),
        folded("All settings of the attacks", *settings),
    )


def knowledge(run: Run) -> Html:
    """What the attacker knows of a random model's randomness, and what that leaves."""
    content = run.json
    if not content.get("randomness") or not content["threat"]:
        return Html("")
    rows = [(about, str(clean), str(worst)) for about, clean, worst in threats(content)]
    notes = []
    if "known" not in content["randomness"]:
        notes.append(
            tag("p", "Nobody attacked with the draw known: --known_draw true.", class_="note")
        )
    return section(
        "What the attacker knows of the randomness",
        table(["randomness", "no attack (95 %)", "worst case (95 %)"], rows, numbers=(1, 2)),
        *notes,
    )


def base(run: Run) -> Html:
    """The classifier without its defense, under the same attacks at the same budget."""
    content = run.json.get(BARE)
    if not content:
        return Html("")
    rows = []
    for key, name in (("clean", "no attack"), ("worst_case", "worst case")):
        if difference := content["added"].get(key):
            figures = (str(Figure.of(each[key])) for each in (content, run.json))
            points = in_points(difference["difference"], *difference["ci95"])
            rows.append((name, *figures, points))
    if (handed := content.get(TRANSFERRED)) and handed["images"] and handed["added"]:
        before, after = (str(Figure.of(each["worst_case"])) for each in (content, handed))
        points = in_points(handed["added"]["difference"], *handed["added"]["ci95"])
        rows.append(("with what broke the classifier alone, handed over", before, after, points))
    attacks = [
        (name, str(Figure.of(row)), f"{row['gradient_evaluations_per_image']:,g}")
        for name, row in content["attacks"].items()
    ]
    budget = content["planned_gradients"]
    spent = (
        f"The attacks may take {budget['defended']:,} gradient evaluations an image behind the"
        f" defense, and {budget['bare']:,} without it. Images that fell are not attacked again."
    )
    if further := content.get("beyond"):
        spent += f" {on_top(further)}"
    tests = {each["test"] for each in content["added"].values()}
    return section(
        "Against its own base model",
        table(["", "without the defense", "with it", "difference (95 %)"], rows, numbers=(1, 2, 3)),
        tag("p", f"{spent} Compared image by image: {'; '.join(sorted(tests))}.", class_="note"),
        folded(
            "Attacks on the classifier alone",
            table(["attack", "accuracy of the images it was given", "gradients"], attacks, (1, 2)),
        ),
    )


def audit(run: Run) -> Html:
    """What the audit says, and what to do next."""
    content = run.json
    if "verdict" not in content:
        why = words.belief(run.results)
        return section("Audit of the evaluation", tag("p", why))
    order = {name: place for place, name in enumerate(SEVERITIES)}
    findings = sorted(content["audit"], key=lambda each: order.get(str(each["severity"]), 9))
    rows: list[tuple[Content, ...]] = []
    for each in findings:
        severity = str(each["severity"])
        kind = {"class_": severity} if severity in words.DOUBTS else {}
        attack = f" [{each['attack']}]" if each["attack"] else ""
        rows.append(
            (
                tag("span", severity, **kind),
                f"{each['check']}{attack}",
                each["measured"],
                each["threshold"],
                each["source"],
                each["remedy"],
            )
        )
    looked = f"The audit looked at {words.counted(content['audit_images'])}."
    sentence = f"{words.belief(run.results)} {looked}"
    return section(
        "Audit of the evaluation",
        tag("p", sentence),
        table(["severity", "check", "measured", "threshold", "source", "what to do next"], rows)
        if rows
        else tag("p", "No finding."),
    )


def cost(run: Run) -> Html:
    """What was spent."""
    content = run.json
    rows: list[tuple[str, ...]] = [
        (name, f"{row.gradients:,g}", f"{row.queries:,g}", f"{row.seconds:,.1f}")
        for name, row in run.results.attacks.items()
    ]
    for kind, points in (content.get("curves") or {}).items():
        asked = [
            sum(float(point[fact]) for point in points) / max(1, content["images"])
            for fact in ("gradient_evaluations", "queries")
        ]
        name = f"curve over {kind}, the evaluation itself included"
        rows.append((name, *(f"{value:,.4g}" for value in asked), ""))
    if "audit_seconds" in content:
        rows.append(("audit", "", "", f"{content['audit_seconds']:,.1f}"))
    if not rows:
        return Html("")
    head = ["attack", "gradient evaluations an image", "queries an image", "seconds"]
    return section(
        "Cost",
        table(head, rows, numbers=(1, 2, 3)),
        tag(
            "p",
            "An attack's figures are means over the images that it was given, a curve's over all"
            " images.",
            class_="note",
        ),
    )


def repeat(run: Run) -> Html:
    """The commands that give the same again."""
    if run.results.plan.handed_over:
        return section(
            "Repeat it",
            tag("p", "Model and images were handed over in Python, by this program:"),
            tag("pre", run.json["command"]),
        )
    # The folder's own name and not its path: whoever reads this has the folder elsewhere.
    again = (
        f"{command('evaluate')} --again {shlex.quote(f'{run.folder.resolve().name}/results.json')}"
    )
    # Nobody's code is run because a report says so.
    own = ", ".join(shlex.quote(name) for name in own_files(run.results.plan.to_json()))
    trusted = f"It runs code of {own}: whoever has it and trusts it adds --trust FILE to that."
    newest = _newest(run)
    return section(
        "Repeat it",
        tag("p", "The command that made these results:"),
        tag("pre", run.json["command"]),
        *([tag("p", newest)] if newest else []),
        tag("p", "The same from where this folder lies, with a line on every figure that differs:"),
        tag("pre", again),
        *([tag("p", trusted)] if own else []),
    )


def _newest(run: Run) -> str:
    """What a command that named no checkpoint took for one, and what it said of sizes by itself:
    after the next training it takes another one. "" where it named what it took.
    """
    plan, typed = run.results.plan, run.json["command"].split()
    named = {word.partition("=")[0] for word in typed}
    # Of other programs, which call this package, nobody knows what they would take.
    ours = {"evaluate", "evaluate.py"} & {PurePath(word).name for word in typed[:2]}
    if plan.checkpoint is None or not ours or named & {"--checkpoint", "--config", "--again"}:
        return ""
    options = {"checkpoint": plan.checkpoint, "images": plan.images}
    options["audit_images"] = plan.audit_images
    missing = shlex.join(
        word
        for name, value in options.items()
        if value is not None and f"--{name}" not in named
        for word in (f"--{name}", str(value))
    )
    return (
        f"It names no checkpoint, and takes the newest whenever it runs. Then this was: {missing}"
    )


def own_files(part: Any) -> list[str]:
    """The names of the files of users' own whose classes a plan names, without their folders."""
    if isinstance(part, list | tuple):
        return sorted({name for item in part for name in own_files(item)})
    if not isinstance(part, dict):
        return []
    file, own, _ = str(part.get("class_path", "")).rpartition(".py:")
    here = [PurePath(f"{file}.py").name] if own else []
    return sorted({*here, *own_files([*part.values()])})


def versions(run: Run) -> Html:
    """On what the figures depend besides."""
    content = run.json
    rows: list[tuple[Any, Any]] = [
        ("weights (SHA-256)", tag("code", content["weights"])),
        ("data", content["data"]),
        ("seed", content["seed"]),
        ("draws an image", content["draws"]),
        *((f"precision of {name}", kind) for name, kind in content["precision"]["attacks"].items()),
        *(content["versions"].items()),
        *((name, _text(value)) for name, value in content["processor"].items()),
        *(("note on the data", line) for line in content["data_notes"]),
    ]
    return section("Versions and processor", table(["", ""], rows))


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)
