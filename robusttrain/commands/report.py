"""What ``robusttrain report FOLDER ...`` does: parse, write ``report.html``, tell."""

from __future__ import annotations

from robusttrain.commands.ranks import alone
from robusttrain.core.console import say
from robusttrain.core.errors import UserError
from robusttrain.reporting import words
from robusttrain.reporting.report import write_report
from robusttrain.reporting.runs import read_run


def run(arguments: list[str]) -> None:
    """Write the report of each folder."""
    if unknown := [each for each in arguments if each.startswith("-")]:
        raise UserError(f"{unknown[0]}: report takes folders alone: robusttrain report FOLDER ...")
    if not arguments:
        raise UserError("report: name a folder that evaluate.py left: robusttrain report FOLDER")
    alone()
    for folder in arguments:
        file = write_report(folder)
        read = read_run(folder)
        for line in (*words.verdict(read.results), *read.missing):
            say(line)
        say(f"written: {file}")
