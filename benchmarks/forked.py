"""Commands as processes of their own that need not import anything: a second instead of five."""

from __future__ import annotations

import multiprocessing
import os
import sys
from pathlib import Path
from typing import Any

import torch

from robusttrain.commands import entry


def imported_once() -> Any:
    """What starts processes that need not import anything: a server forks them, that has imported
    the commands and has no other threads. A fork of this process might wait for good, for a lock
    that one of its threads held.
    """
    context = multiprocessing.get_context("forkserver")
    commands = ["robusttrain.commands.evaluate", "robusttrain.commands.train"]
    context.set_forkserver_preload([*commands, __name__])
    first = context.Process(target=int)  # waits for the server's imports, so that no other has to
    first.start()
    first.join()
    return context


def become(script: str, words: list[str], folder: str, out: str, err: str) -> None:
    """Be ``python SCRIPT WORDS``, as far as that process and the processes that it starts can tell.

    Args:
        script: ``train.py`` or ``evaluate.py``.
        words: of its command line.
        folder: where it runs.
        out: file for what it prints.
        err: likewise, of its errors.
    """
    for path, number in ((out, 1), (err, 2)):
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), number)
    os.chdir(folder)
    torch.set_num_threads(1)
    os.environ["OMP_NUM_THREADS"] = "1"
    os.environ["PYTHONPATH"] = folder
    sys.argv = [script, *words]
    sys.modules["__main__"].__spec__ = None  # Lightning starts what this names, else the script
    entry.run(Path(script).stem, words, script)
