r"""An evaluation that is killed again and again and started again ends as one that was not.

    python -m benchmarks.kill_and_resume --kills 20 -- --checkpoint CKPT --attack bpda-i \
        --attack wt --images 40

What stands behind ``--`` is a command line of evaluate.py. It is run once whole, then killed
(SIGKILL) ``--kills`` times at random moments, and run to its end. The two results.json are
compared, but for seconds.
"""

from __future__ import annotations

import argparse
import json
import random
import shutil
import sys
import time
from pathlib import Path
from typing import Any

import torch

from benchmarks.forked import imported_once
from robusttrain.commands import evaluate
from robusttrain.core.errors import UserError


def timeless(path: Path) -> dict[str, Any]:
    """The content of a results.json without what no two runs share."""
    content: dict[str, Any] = json.loads(path.read_text())
    for row in content["attacks"].values():
        row.pop("seconds")
    for name in ("audit_seconds", "command", "plan"):  # the plan names the folder
        content.pop(name, None)
    return content


def _evaluate(arguments: list[str], threads: int) -> None:
    torch.set_num_threads(threads)
    try:
        evaluate.run(arguments)
    except UserError as error:
        sys.exit(f"evaluate.py: {error}")


def kill_and_resume(
    arguments: list[str], folder: Path, kills: int, seed: int = 0
) -> dict[str, Any]:
    """Run, kill, resume, compare.

    Args:
        arguments: of evaluate.py, without ``--output``.
        folder: for both runs.
        kills: how often the second one is killed.
        seed: of the moments.

    Returns:
        ``same``: whether both ended alike; ``entries``: batches of attacks in all; ``found``: how
            many of them were
        there before the last start; ``kills``: how often a run that was still going was killed.
    """
    context = imported_once()
    moments = random.Random(seed)

    def start(name: str) -> Any:
        # Each folder would choose a precision of its own.
        command = ["--precision", "float32", *arguments, "--output", str(folder / name)]
        process = context.Process(target=_evaluate, args=(command, torch.get_num_threads()))
        process.start()
        return process

    shutil.rmtree(folder, ignore_errors=True)
    begin = time.monotonic()
    whole = start("whole")
    whole.join()
    lasts = time.monotonic() - begin
    if whole.exitcode:
        raise UserError(
            f"evaluate.py ended with exit code {whole.exitcode}: nothing to compare with"
        )
    killed, patience = 0, max(60.0, 10 * lasts)
    for _ in range(kills):
        process = start("killed")
        if moments.random() < 0.5:  # once it has finished something more
            before = _entries(folder / "killed")
            late = time.monotonic() + patience
            while process.is_alive() and _entries(folder / "killed") <= before:
                if time.monotonic() > late:
                    break
                time.sleep(0.005)
            process.join(moments.uniform(0, 0.02))
        else:  # at any time, also while it starts
            process.join(moments.uniform(0, 0.5) * lasts)
        killed += process.is_alive()
        process.kill()
        process.join()
    left = _entries(folder / "killed")
    last = start("killed")
    last.join(patience)
    if last.is_alive():
        last.kill()
        last.join()
    same = not last.exitcode and timeless(folder / "whole" / "results.json") == timeless(
        folder / "killed" / "results.json"
    )
    return {"same": same, "entries": _entries(folder / "whole"), "found": left, "kills": killed}


def _entries(folder: Path) -> int:
    return sum(1 for _ in (folder / "journal").glob("*/*.safetensors"))


def main() -> None:
    """Parse, run, tell; exit code 1 if the runs differ."""
    own = sys.argv[1:]
    command = own[own.index("--") + 1 :] if "--" in own else []
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    parser.add_argument("--folder", default="results/kill-and-resume", help="for both runs")
    options = parser.parse_args(own[: own.index("--")] if "--" in own else own)
    outcome = kill_and_resume(command, Path(options.folder), options.kills, options.seed)
    print(json.dumps(outcome))
    sys.exit(not outcome["same"])


if __name__ == "__main__":
    main()
