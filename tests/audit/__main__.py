"""``python -m tests.audit``: what the audit says of every evaluation of the corpus, and both
rates.
"""

from __future__ import annotations

import argparse
import sys
import time

from rich.console import Console
from rich.table import Table

from robusttrain.evaluation.audit import SAMPLE

from .corpus import SOUND, WRONG, audited


def main() -> int:
    options = argparse.ArgumentParser(prog="python -m tests.audit", description=__doc__)
    options.add_argument(
        "--audit_images",
        type=int,
        default=SAMPLE,
        help="of each sample; 0: by cost, as evaluate.py",
    )
    sample = options.parse_args().audit_images or None
    shown = Table(title="the audit on the corpus", title_justify="left")
    for column in ("evaluation", "must be named by", "verdict", "seconds"):
        shown.add_column(column, overflow="fold")
    named = accused = 0
    for case in (*WRONG, *SOUND):
        start = time.perf_counter()
        audit = audited(case, sample)
        said = [found.check for found in audit.findings if found.severity in ("masked", "weak")]
        hit = case.expected in said
        named += hit
        accused += case.expected is None and audit.verdict != "sound"
        mark = "" if case.expected is None else (" (named)" if hit else " (missed)")
        shown.add_row(
            case.name,
            (case.expected or "-") + mark,
            audit.verdict,
            f"{time.perf_counter() - start:.1f}",
        )
    Console(width=None if sys.stdout.isatty() else 140).print(shown)
    sys.stdout.write(f"{named} of {len(WRONG)} named, {accused} of {len(SOUND)} accused\n")
    return int(named < len(WRONG) or accused > 0)


if __name__ == "__main__":
    sys.exit(main())
