"""robusttrain: trains robust image classifiers and attacks them honestly.

Data flows one way: data -> defended classifier -> attack -> score -> report. Start at ``attacks/`` to read how an
attack is put together, at ``defenses/`` for what stands before a classifier, at ``evaluation/`` for how a figure
comes about.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from robusttrain.checkpoints import load
    from robusttrain.defended import DefendedClassifier
    from robusttrain.errors import OptionError, UserError
    from robusttrain.models import fast_copy
    from robusttrain.rng import Rng

__all__ = ["DefendedClassifier", "OptionError", "Rng", "UserError", "fast_copy", "load"]
__version__ = "0.1.0"

#: Where each public name lives. It is imported when it is first asked for: `import robusttrain` costs nothing, and a
#: command can prepare its process before torch is loaded.
_HOMES = {
    "DefendedClassifier": "robusttrain.defended",
    "OptionError": "robusttrain.errors",
    "Rng": "robusttrain.rng",
    "UserError": "robusttrain.errors",
    "fast_copy": "robusttrain.models",
    "load": "robusttrain.checkpoints",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)
