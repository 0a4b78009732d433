"""``python -m tests.audit``: what the audit says of every evaluation of the corpus, and both rates
for each of its parts.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence

from rich.console import Console
from rich.table import Table

from robusttrain.evaluation.audit import SAMPLE

from .blind import BLIND_SOUND, BLIND_WRONG
from .corpus import SOUND, WRONG, Case, audited
from .heldout import HELD_OUT_SOUND, HELD_OUT_WRONG
from .weak_objectives import NEW_SOUND, NEW_WRONG

#: The parts of the corpus: wrong evaluations, then sound ones.
PARTS: dict[str, tuple[Sequence[Case], Sequence[Case]]] = {
    "first": (WRONG, SOUND),
    "new": (NEW_WRONG, NEW_SOUND),
    "held out": (HELD_OUT_WRONG, HELD_OUT_SOUND),
    "blind": (BLIND_WRONG, BLIND_SOUND),
}


def main() -> int:
    options = argparse.ArgumentParser(prog="python -m tests.audit", description=__doc__)
    options.add_argument(
        "--audit_images",
        type=int,
        default=SAMPLE,
        help="of each sample; 0: by cost, as evaluate.py",
    )
    options.add_argument("--part", choices=PARTS, action="append", help="of the corpus; else all")
    given = options.parse_args()
    console = Console(width=None if sys.stdout.isatty() else 140)
    failed, counts = False, []
    for part in given.part or PARTS:
        wrong, sound = PARTS[part]
        shown = Table(title=f"the audit on the corpus: {part}", title_justify="left")
        for column in ("evaluation", "must be named by", "verdict", "CPU seconds"):
            shown.add_column(column, overflow="fold")
        named = accused = 0
        for case in (*wrong, *sound):
            start = time.process_time()
            audit = audited(case, given.audit_images or None)
            named += case.named_by(audit)
            accused += case.expected is None and audit.verdict != "sound"
            mark = (
                "" if case.expected is None else "missed" if not case.named_by(audit) else "named"
            )
            shown.add_row(
                case.name,
                f"{case.expected or '-'}" + (f" ({mark})" if mark else ""),
                audit.verdict,
                f"{time.process_time() - start:.1f}",
            )
        console.print(shown)
        counts.append(
            f"{part}: {named} of {len(wrong)} named, {len(wrong) - named} missed,"
            f" {accused} of {len(sound)} accused"
        )
        failed |= named < len(wrong) or accused > 0
    sys.stdout.write("\n".join(counts) + "\n")
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
