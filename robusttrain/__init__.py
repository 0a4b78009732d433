"""robusttrain: trains robust image classifiers and attacks them honestly.

Data flows one way: data -> defended classifier -> attack -> score -> report. Start at ``attacks/``
to read how an attack is put together, at ``defenses/`` for what stands before a classifier, at
``evaluation/`` for how a figure comes about.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from robusttrain.core.version import __version__

if TYPE_CHECKING:
    from robusttrain.commands.calls import attack, evaluate
    from robusttrain.config.checkpoints import READER, load
    from robusttrain.core.errors import OptionError, UserError
    from robusttrain.core.rng import Rng
    from robusttrain.evaluation.plan import EvaluationPlan
    from robusttrain.evaluation.report import Results, read_results
    from robusttrain.models import fast_copy
    from robusttrain.models.defended import DefendedClassifier

__all__ = [
    "READER",
    "DefendedClassifier",
    "EvaluationPlan",
    "OptionError",
    "Results",
    "Rng",
    "UserError",
    "__version__",
    "attack",
    "evaluate",
    "fast_copy",
    "load",
    "read_results",
]

#: Where each public name lives. It is imported when it is first asked for: `import robusttrain`
#: costs nothing, and a command can prepare its process before torch is loaded.
_HOMES = {
    "READER": "robusttrain.config.checkpoints",
    "DefendedClassifier": "robusttrain.models.defended",
    "EvaluationPlan": "robusttrain.evaluation.plan",
    "OptionError": "robusttrain.core.errors",
    "Results": "robusttrain.evaluation.report",
    "Rng": "robusttrain.core.rng",
    "UserError": "robusttrain.core.errors",
    "attack": "robusttrain.commands.calls",
    "evaluate": "robusttrain.commands.calls",
    "fast_copy": "robusttrain.models",
    "load": "robusttrain.config.checkpoints",
    "read_results": "robusttrain.evaluation.report",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
