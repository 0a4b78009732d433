"""Evaluation: runs attacks over data, scores with fresh draws, and reports the worst case.

One engine has two callers: ``evaluate.py``, through ``Evaluation`` on Lightning's Trainer, and the
validation callback.
"""

from robusttrain.evaluation.audit import LEAST, Audit, audit_lines
from robusttrain.evaluation.engine import Engine
from robusttrain.evaluation.fitting import one_threat, settle
from robusttrain.evaluation.module import Evaluation, gather
from robusttrain.evaluation.records import Records, Rows
from robusttrain.evaluation.results import results, table
from robusttrain.evaluation.scenario import Scenario
from robusttrain.evaluation.scoring import top_classes, verdicts, wilson, worst_case
from robusttrain.evaluation.taking import check_classes, need_two

__all__ = [
    "LEAST",
    "Audit",
    "Engine",
    "Evaluation",
    "Records",
    "Rows",
    "Scenario",
    "audit_lines",
    "check_classes",
    "gather",
    "need_two",
    "one_threat",
    "results",
    "settle",
    "table",
    "top_classes",
    "verdicts",
    "wilson",
    "worst_case",
]
