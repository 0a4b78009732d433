"""Results in sentences that somebody who does not know the field can read."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from robusttrain.evaluation.audit import INCOMPLETE, NO_CHECK
from robusttrain.evaluation.beside import sentence
from robusttrain.evaluation.certificates import finding
from robusttrain.evaluation.class_doubts import doubts_of
from robusttrain.evaluation.covering import is_no_bound
from robusttrain.evaluation.report import Figure, Results

#: Whose figure may not be believed as it stands.
DOUBTS = ("masked", "weak")


def plainly(name: object) -> str:
    """A name from a file, for a terminal: without what steers it."""
    return "".join(each for each in str(name) if each.isprintable())


def counted(count: float, what: str = "image") -> str:
    """A number of things: 1 image, 1,000 images."""
    return f"{count:,.0f} {what}{'' if round(count) == 1 else 's'}"


def radius(epsilon: float, norm: str = "linf") -> str:
    """A radius as it is usually written: 8/255, or 0.031 (7.9/255); Euclidean lengths as they
    are.
    """
    if norm == "l2" or epsilon == 0:
        return f"{epsilon:g}"
    levels = 255 * epsilon
    if abs(levels - round(levels)) < 1e-3:
        return f"{levels:.0f}/255"
    return f"{epsilon:.4g} ({levels:.3g}/255)"


def allowed(threat: Mapping[str, Any]) -> str:
    """What the attacker may change, as the end of a sentence."""
    if "ball" in threat:
        own = {key: value for key, value in threat.items() if key != "ball"}
        return f"{allowed(own)}, and only those that {threat['ball']} allows"
    size = radius(float(threat["epsilon"]), str(threat["norm"]))
    if boundless(threat):
        return "changes of any size"
    if threat["norm"] == "linf":
        return f"changes of at most {size} per pixel"
    if threat["norm"] == "rmsd":
        return f"changes of at most {size} per pixel on average (root mean square)"
    if threat["norm"] == "l2":
        return f"changes of Euclidean length {size} at most (pixel values from 0 to 1)"
    return f"changes of at most {size} in the norm {threat['norm']}"


def boundless(threat: Mapping[str, Any]) -> bool:
    """Whether a threat is no bound on what may change."""
    # Of another ball the radius is not the whole bound.
    return "ball" not in threat and is_no_bound(str(threat["norm"]), float(threat["epsilon"]))


def verdict(results: Results) -> list[str]:
    """The sentences on top of a report: what is right, what stays right, and whether to believe
    it.
    """
    content = results.json
    total = int(content["images"])
    if not total or results.clean.accuracy is None:
        return ["No image was evaluated: nothing is said about the model."]
    mean = f", on average over {counted(content['draws'], 'draw')} of its randomness"
    added = sentence(content)
    broken = finding(content)
    sentences = [
        *([broken] if broken else []),
        *([added] if added else []),
        f"Of {counted(total)} the model classifies {of(results.clean, total)} rightly"
        f"{mean if content['random'] else ''}.",
    ]
    if results.attacks and content["threat"]:
        worst = results.worst_case
        low, high = total * worst.low, total * worst.high
        count = of(worst, total)
        stays = "stays" if count == "1" else "stay"
        sentences.append(
            f"Under attack with {allowed(content['threat'])}, {count} {stays} right"
            f" (95 % sure: between {low:,.0f} and {high:,.0f})."
        )
    else:
        sentences.append("It was not attacked.")
    return [*sentences, *map(plainly, doubts_of(content)), belief(results)]


def of(figure: Figure, total: int) -> str:
    """How many images an accuracy is; a mean over draws need not be whole."""
    count = total * (figure.accuracy or 0.0)
    whole = abs(count - round(count)) < 0.01 + 1e-6 * total
    return f"{count:,.0f}" if whole else f"about {count:,.0f}"


def belief(results: Results) -> str:
    """Whether the figure can be believed, as the audit has it."""
    content = results.json
    if "verdict" not in content:
        if results.plan.audit:
            return (
                "Whether the evaluation itself is sound is not known: its audit is missing, as it"
                " was stopped before. The same command makes up for it."
            )
        return (
            "Whether the evaluation itself is sound was not looked at: it ran with --audit false."
        )
    findings = content["audit"]
    checks = {
        kind: {plainly(each["check"]) for each in findings if each["severity"] == kind}
        for kind in (*DOUBTS, "not run")
    }
    named = checks["masked"] | checks["weak"]
    without = len(checks["not run"] - named)
    passed = int(content.get("audit_checks", 0)) - len(named) - without
    counts = f"{counted(passed, 'check')} passed" if passed > 0 else ""
    if without:
        counts += f"{', ' if counts else ''}{without} could not run"
    if not named:
        if content["verdict"] == NO_CHECK:
            return (
                f"The audit could make none of its checks of the attacks ({without} could not run):"
                " whether the evaluation itself is sound is not known."
            )
        if content["verdict"].startswith(INCOMPLETE):
            failed = content["verdict"].removeprefix(INCOMPLETE)
            return (
                f"Whether the evaluation itself is sound is not known: its audit is incomplete"
                f" ({counts}). Checks that ended in an error: {failed}."
            )
        if not counts or passed <= 0:
            counts = f": {counts}" if counts else ""
            return f"The audit found no fault in the evaluation{counts}."
        return f"The evaluation itself looks sound: {counts}."
    if results.worst_case.accuracy == 0:
        what = "Nothing stays right, so no other attack breaks more; but the audit found faults"
    elif checks["masked"]:
        what = (
            "Do not rely on this figure: the model hides from the attacks, and better ones are"
            " likely to break it"
        )
    else:
        what = "The figure is probably too high: stronger attacks are likely to break more"
    checks_line = "; ".join(filter(None, (", ".join(sorted(named)), counts)))
    return f"{what}. Checks that say so: {checks_line}."


def doubtful(results: Results) -> bool:
    """Whether the verdict warns."""
    if finding(results.json) or doubts_of(results.json):
        return True
    return "verdict" not in results.json or results.json["verdict"] != "sound"
