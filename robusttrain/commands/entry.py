"""How a command's process starts: what must be settled before torch is loaded, then the command."""

from __future__ import annotations

import importlib
import os
from typing import NoReturn


def start(name: str) -> NoReturn:
    """Run the command of this name, "train" or "evaluate", with the arguments of this process."""
    # OpenMP's threads spin while they wait, at the cost of every other process on these cores:
    # beside a second one, g takes several times as long. Sleeping costs nothing where nobody else
    # computes. The library reads this once, when torch loads it.
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    from robusttrain.config.command_line import main

    main(importlib.import_module(f"robusttrain.commands.{name}").run)
