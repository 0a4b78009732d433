"""``evaluate.py --estimate``: the cost of an evaluation, said without running it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

from robusttrain.attacks.sources.surrogates import surrogates_in
from robusttrain.config.attacks import scenario
from robusttrain.core.advice import without_advice
from robusttrain.core.telling import Say, silence
from robusttrain.evaluation.plan import EvaluationPlan
from robusttrain.evaluation.running import Subject, compilation_of, cost_before, precisions_of
from robusttrain.evaluation.scenario import Scenario
from robusttrain.running.evaluating import keeper_of, opened, tester
from robusttrain.running.surrogates import with_paths
from robusttrain.storage.files import may_write


@without_advice()
def estimate(plan: EvaluationPlan, say: Say = silence) -> None:
    """Say what `evaluate` would cost here; nothing is attacked, trained or written.

    Args:
        plan: what would be evaluated.
        say: takes lines.

    Raises:
        UserError: as for `evaluate`.
    """
    may_write(Path(plan.output), "--output")
    with TemporaryDirectory() as folder:  # for the choice of a precision
        plan = replace(plan, output=folder)
        subject, attacks = opened(plan, say)
        device = tester(plan.trainer, say).strategy.root_device
        plan, attacks = with_models_at_hand(plan, attacks, subject, say)
        precisions = precisions_of(plan, subject, attacks, device, say)
        compilation = compilation_of(plan, subject, attacks, precisions, device, say)
        cost_before(plan, subject, attacks, precisions, device, say, compilation)
    say("nothing was attacked, trained or written: leave out --estimate to start")


def with_models_at_hand(
    plan: EvaluationPlan, attacks: dict[str, Scenario], subject: Subject, say: Say
) -> tuple[EvaluationPlan, dict[str, Scenario]]:
    """The plan and its attacks without those whose models the attacker would have to train first;
    arguments as for `provide_surrogates`.
    """
    plan = plan.without(subject.unfit)
    if not (needed := surrogates_in(plan.attacks)):
        return plan, attacks
    found = keeper_of(plan, subject).find(needed, plan.surrogate_epochs, say)
    lacking = {
        name: f"{', '.join(missing)} would be trained first"
        for name, node in plan.attacks.items()
        if (missing := [each for each in surrogates_in(node) if each in found.missing])
    }
    for name, why in lacking.items():
        say(f"{name}: not estimated, since {why}")
    plan = plan.without(lacking)
    return plan, {
        name: scenario(with_paths(node, found.paths), name) for name, node in plan.attacks.items()
    }
