"""What ``python evaluate.py`` does: parse, run, tell."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from robusttrain.commands import transfer
from robusttrain.commands.ranks import alone
from robusttrain.config.command_line import take
from robusttrain.config.evaluation import read_again, read_plan
from robusttrain.config.transfer import chosen
from robusttrain.core.console import ALOUD, console, say
from robusttrain.core.stopping import saying_how_to_go_on
from robusttrain.core.telling import first_process
from robusttrain.evaluation import audit_lines, table
from robusttrain.evaluation.beside import sentence, too_weak
from robusttrain.evaluation.certificates import certificates_table, finding
from robusttrain.evaluation.compiling import mode_in
from robusttrain.evaluation.plan import EvaluationPlan
from robusttrain.evaluation.randomness import randomness_table
from robusttrain.evaluation.report import Results, changes
from robusttrain.models.compiling import Mode
from robusttrain.running import evaluating
from robusttrain.running.estimating import estimate

#: Exit codes: with --strict, the audit's verdict is not sound, a certificate was broken, or the
#: attacks missed what transfer finds; a repeated evaluation came out otherwise. Of several
#: processes the first alone has one: it audits when the others are done, and Lightning kills it as
#: soon as one of those ends with an error.
UNSOUND, OTHERWISE = 3, 4
#: Asks for the cost alone; no part of a plan, since nothing is evaluated.
ESTIMATE = "--estimate"


def run(arguments: list[str]) -> None:
    """Attack as the command line says."""
    written: list[Path] = []
    with saying_how_to_go_on(say, lambda: how_to_go_on(arguments), written):
        if (repeated := read_again(arguments)) is not None:
            before, plan = repeated
            written.append(Path(plan.output))
            alone(plan.trainer)
            repeat(before, plan)
        elif chosen(arguments):
            alone()
            transfer.run(arguments, written)
        else:
            plan = read_plan(arguments)
            alone(plan.trainer)
            # An evaluation may go into a folder beside the default one.
            written.append(Path(plan.output).parent if plan.beside else Path(plan.output))
            if ESTIMATE in arguments:
                estimate(plan, say)
                return
            content = evaluate(plan)
            judged = content.get("verdict", "sound") == "sound"
            unsound = not judged or finding(content) or too_weak(content)
            if plan.strict and unsound and first_process():
                sys.exit(UNSOUND)


def how_to_go_on(arguments: list[str]) -> str:
    """What to tell whoever stops a command: ``--fresh true`` would drop what is kept."""
    said, _ = take(arguments, lambda option: option == "--fresh", "give true or false")
    without = " without --fresh true" if said and said[-1][1] != "false" else ""
    return f"what was finished is kept; the same command{without} goes on from there"


def evaluate(
    plan: EvaluationPlan,
    precisions: dict[str, str] | None = None,
    compiled: Mode | None = None,
) -> dict[str, Any]:
    """Carry out a plan and tell what came out; arguments as for `evaluating.evaluate`."""
    content = evaluating.evaluate(plan, replace(ALOUD, figures=show), precisions, compiled)
    if "verdict" in content:
        for line in audit_lines(content):
            say(line)
    say(f"written: {Path(content['plan']['output']) / 'results.json'}, and report.html beside it")
    return content


def show(content: Mapping[str, Any]) -> None:
    """Print the tables of an evaluation."""
    if first := sentence(content):
        say(first)
    console.print(table(content))
    if content["randomness"]:
        console.print(randomness_table(content))
    if "certificates" in content:
        console.print(certificates_table(content))
        if broken := finding(content):
            say(broken)


def repeat(before: Results, plan: EvaluationPlan) -> None:
    """Evaluate again, and say whether it came out the same."""
    content = evaluate(plan, before.json["precision"]["attacks"], mode_in(before.json))
    if not first_process():
        return
    differences = list(changes(before.json, json.loads(json.dumps(content))))
    for line in differences:
        say(f"differs: {line}")
    same = content["processor"] == before.json["processor"]
    here = "" if same else ", on another processor or version of torch"
    came_out = f"{len(differences)} figures or facts differ" if differences else "the same"
    say(f"again: {came_out}{here}")
    if differences:
        sys.exit(OTHERWISE)
