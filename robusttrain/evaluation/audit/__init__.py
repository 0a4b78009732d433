"""The audit: does the evaluation prove what its figures say?

A robust accuracy is an upper bound, and a weak attack makes it a loose one. The audit takes an
evaluation as it is configured (model, attacks with their sources, threat). It runs the strongest
attack again on a sample of images, in versions that must not be stronger, and looks for the signs
of weak and masked evaluations that the literature names. docs/audit.md says what each check
measures, its threshold and its source.

Each check is a function ``Check(subject) -> Finding | None``, and all checks stand in one table,
`CHECKS`. They count images by the same rule (`significant`), draw from streams of their own, and
never score with the draws by which they chose. A check that cannot be made raises `NotRun`, and is
always listed as not run; so is one that fails, and the evaluation goes on. A check that has nothing
to ask raises `Needless`, and does not count as passed.

    before.py     the model: repeated passes, probabilities, zero gradients
    trace.py      the course of an attack: its losses and iterates
    strength.py   the strongest attack against its other versions: epsilon, steps, draws, iterates
    objectives.py the strongest attack with another objective, and from another start
    others.py     the strongest attack against other attackers: search, noise, frozen randomness
    unfollowed.py a white box of the audit's own, where the evaluation had none
    gradients.py  its gradient, repeated, against finite differences and random directions
    planted.py    the binarisation test
"""

from robusttrain.evaluation.audit.finding import Finding, significant
from robusttrain.evaluation.audit.report import (
    CHECKS,
    INCOMPLETE,
    NO_CHECK,
    Audit,
    Check,
    audit_lines,
    verdict,
)
from robusttrain.evaluation.audit.subject import LEAST, SAMPLE, Subject

__all__ = [
    "CHECKS",
    "LEAST",
    "INCOMPLETE",
    "NO_CHECK",
    "SAMPLE",
    "Audit",
    "Check",
    "Finding",
    "Subject",
    "audit_lines",
    "significant",
    "verdict",
]
