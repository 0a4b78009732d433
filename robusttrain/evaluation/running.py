"""An evaluation from built parts to ``results.json``: a target, its data and attacks suffice,
without configuration or command line.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch

from robusttrain.core.errors import UserError
from robusttrain.core.repeatable import repeatable
from robusttrain.core.rng import Rng
from robusttrain.core.telling import SILENT, Doubt, Say, Telling, first_process
from robusttrain.data import ImageData
from robusttrain.data.batches import Split
from robusttrain.evaluation.answers import Answers, answers_of, as_noted
from robusttrain.evaluation.audit import Audit
from robusttrain.evaluation.auditing import begin_audit, finish_audit, images_of, journalled_audit
from robusttrain.evaluation.beside import (
    Beside,
    bare_classifier,
    classifier_alone,
    known_draw,
    too_weak,
)
from robusttrain.evaluation.certification import Certification
from robusttrain.evaluation.certify import Smoothed
from robusttrain.evaluation.choosing import Run, choose_compilation, choose_precisions
from robusttrain.evaluation.class_doubts import doubt_classes
from robusttrain.evaluation.compiling import PLAIN, Choice
from robusttrain.evaluation.cost import EvaluationCost, announce, check_sources
from robusttrain.evaluation.curve import Curve
from robusttrain.evaluation.engine import Engine
from robusttrain.evaluation.export import export, export_line
from robusttrain.evaluation.fitting import repeated
from robusttrain.evaluation.gradient_work import works_of
from robusttrain.evaluation.module import Evaluation
from robusttrain.evaluation.outputs import explained, fingerprint, open_journal, save_requested
from robusttrain.evaluation.plan import EvaluationPlan
from robusttrain.evaluation.scenario import Scenario
from robusttrain.models.compiling import Mode
from robusttrain.models.defended import DefendedClassifier
from robusttrain.storage.files import write_json
from robusttrain.storage.journal import Journal, digest, weights_of
from robusttrain.storage.made_of import made_of


@dataclass(frozen=True)
class Subject:
    """What is evaluated, built.

    Args:
        target: the defended classifier, on the CPU, in evaluation mode.
        name: the target's name in the report.
        data: set up for "test".
        unfit: attacks of the plan that do not apply to the target, and why.
        bare: of these, the ones that apply to its classifier without the defense, for
            ``bare_classifier``.
        codes: of the user's own code in attacks, by name (`codes_of`).
        training_seed: of the target's training; None where nobody knows.
        doubts: lines that put its figures in question, as its attacks and the threat tell.
    """

    target: DefendedClassifier
    name: str
    data: ImageData
    unfit: Mapping[str, str] = field(default_factory=dict)
    bare: Mapping[str, Scenario] = field(default_factory=dict)
    codes: Mapping[str, str] = field(default_factory=dict)
    training_seed: int | None = None
    doubts: Sequence[str] = ()

    @cached_property
    def weights(self) -> str:
        """The target's weights by their hash, which takes a while for large ones."""
        return weights_of(self.target)

    @cached_property
    def code(self) -> str:
        """What the target does besides, as `made_of` has it."""
        return made_of(self.target)

    @cached_property
    def answers(self) -> Answers | None:
        """What it answers to a few images, for what `code` cannot read."""
        return answers_of(self.target, self.data.first_test_batch().images)

    @cached_property
    def images(self) -> str:
        """The test images by their hash: other images are another run, wherever they lie."""
        split: Split = self.data.test_dataloader().dataset  # type: ignore[assignment]
        return digest(split.identity())


def settings_of(plan: EvaluationPlan, subject: Subject) -> dict[str, Any]:
    """The `fingerprint` of a plan on its subject: of all attacks that run, be it on the bare
    classifier alone.
    """
    idle = {name: why for name, why in subject.unfit.items() if name not in subject.bare}
    settings = fingerprint(plan.without(idle), subject.weights, subject.target.random)
    journal = Path(plan.output) / "journal"
    answers = as_noted(subject.answers, subject.target, journal)
    target = {**settings["target"], "code": subject.code, "answers": answers}
    data = {**settings["data"], "images": subject.images}
    codes = {"code": dict(subject.codes)} if subject.codes else {}
    return {**settings, "target": target, "data": data, **codes}


def precisions_of(
    plan: EvaluationPlan,
    subject: Subject,
    attacks: Mapping[str, Scenario],
    device: torch.device,
    say: Say,
) -> dict[str, str]:
    """The precision in which each attack differentiates; arguments as for `attack`."""
    settings = settings_of(plan, subject)
    run = Run(Path(plan.output), settings, plan.fresh and first_process())
    return choose_precisions(
        plan.precision, subject.target, attacks, subject.data, plan.seed, run, device, say
    )


def compilation_of(
    plan: EvaluationPlan,
    subject: Subject,
    attacks: Mapping[str, Scenario],
    precisions: Mapping[str, str],
    device: torch.device,
    say: Say,
    before: Mode | None = None,
) -> Choice:
    """How the attacks take gradients; arguments as for `attack`, and what a run chose that is
    repeated.
    """
    settings = settings_of(plan, subject) | {"precision": dict(precisions)}
    run = Run(Path(plan.output), settings, plan.fresh and first_process(), "compilation")
    types = {name: getattr(torch, chosen) for name, chosen in precisions.items()}
    find = partial(works_of, subject.target, attacks, types, subject.data, plan.seed, device)
    try:
        return choose_compilation(plan.compile, find, run, device, say, before)
    finally:
        subject.target.cpu()


def curves_of(plan: EvaluationPlan, engine: Engine) -> list[Curve]:
    """The curves that a plan asks for."""
    asked = {"epsilon": plan.curve, "effort": plan.curve_effort}
    return [Curve(engine, kind, values) for kind, values in asked.items() if values]


def besides_of(
    plan: EvaluationPlan,
    subject: Subject,
    engine: Engine,
    say: Say,
) -> list[Beside]:
    """The evaluations that a plan asks for besides, as far as the target has what they need."""
    besides = []
    if plan.known_draw and engine.target.random:
        first = subject.data.first_test_batch()
        rng = Rng.for_images(plan.seed, first.indices)
        if repeated(engine.target, first.images, rng) is not None:
            besides.append(known_draw(engine))
        else:
            say(
                "known_draw: the target draws from a generator of its own besides the images'"
                " streams, so nobody can be told its draw: left out"
            )
    elif plan.known_draw:
        say("known_draw: the target is not random, so there is no draw to know")
    if plan.tries and not engine.target.random:
        say("tries: the target is not random, so one try is as good as many")
    if plan.bare_classifier and engine.target.defense is not None:
        first = subject.data.first_test_batch()
        try:
            bare = classifier_alone(engine.target, first.images, first.indices)
        except UserError as error:
            say(f"bare_classifier: {error}: left out")
        else:
            besides.append(bare_classifier(engine, engine.types, subject.bare, bare))
    elif plan.bare_classifier:
        say("bare_classifier: the target has no defense, so it is its own base model")
    return besides


def certification_of(
    plan: EvaluationPlan, subject: Subject, engine: Engine
) -> Certification | None:
    """What certifies the images, if the plan asks for that.

    Raises:
        UserError: the target's defense does not begin with Gaussian noise.
    """
    if not plan.certify:
        return None
    smoothed = Smoothed.of(
        subject.target,
        subject.data.facts().num_classes,
        plan.certify_draws,
        plan.certify_choosing,
        plan.certify_alpha,
    )
    return Certification(engine, smoothed, plan.curve)


def identity(
    plan: EvaluationPlan,
    subject: Subject,
    precisions: Mapping[str, str],
    compilation: Choice,
) -> dict[str, Any]:
    """All that the figures depend on, except sources that an attacker has to train first."""
    chosen = {"precision": dict(precisions), "compile": compilation.mode}
    return settings_of(plan, subject) | chosen


def engine_of(
    plan: EvaluationPlan,
    subject: Subject,
    attacks: Mapping[str, Scenario],
    precisions: Mapping[str, str],
    compilation: Choice,
) -> Engine:
    """The engine of an evaluation, whose models and data fit each other; arguments as for
    `attack`.
    """
    engine = Engine(
        subject.target,
        attacks,
        plan.seed,
        plan.draws,
        {name: getattr(torch, chosen) for name, chosen in precisions.items()},
        plan.survivors,
        plan.save_images or plan.export is not None,
        leave_early=plan.leave_early,
        compiled=compilation.active,
    )
    check_sources(engine, subject.data)
    return engine


def evaluation_of(
    plan: EvaluationPlan,
    subject: Subject,
    engine: Engine,
    say: Say,
    journal: Journal | None = None,
) -> Evaluation:
    """All that a plan asks for, on its engine; nothing runs yet."""
    return Evaluation(
        engine,
        journal,
        lambda count: say(f"waiting for {count} batches that other processes work on"),
        curves_of(plan, engine),
        besides_of(plan, subject, engine, say),
        plan.tries,
        certification_of(plan, subject, engine),
    )


def cost_of(
    evaluation: Evaluation,
    data: ImageData,
    audit: Audit | None,
    device: torch.device,
    say: Say,
) -> EvaluationCost:
    """What an evaluation will cost, said before it starts; measured where it will run.

    Only the first of several processes measures.
    """
    evaluation.to(device)
    parts = (evaluation.curves, evaluation.besides, evaluation.certification)
    return announce(evaluation.engine, data, audit, say, device, *parts) or EvaluationCost()


def cost_before(
    plan: EvaluationPlan,
    subject: Subject,
    attacks: Mapping[str, Scenario],
    precisions: Mapping[str, str],
    device: torch.device,
    say: Say,
    compilation: Choice = PLAIN,
) -> None:
    """Say what `attack` would cost, and attack and write nothing; arguments as there."""
    engine = engine_of(plan, subject, attacks, precisions, compilation)
    evaluation = evaluation_of(plan, subject, engine, say)
    audit = Audit(engine, images_of(subject.data), plan.audit_images) if plan.audit else None
    say(str(cost_of(evaluation, subject.data, audit, device, say)))


@repeatable()
def attack(
    plan: EvaluationPlan,
    subject: Subject,
    attacks: Mapping[str, Scenario],
    precisions: Mapping[str, str],
    trainer: pl.Trainer,
    telling: Telling = SILENT,
    written: Callable[[Path], object] = lambda folder: None,
    compilation: Choice = PLAIN,
) -> dict[str, Any]:
    """Attack, score and audit. The first of several processes also writes the returned content to
    ``results.json``.

    Args:
        plan: how to evaluate; its nodes of model, data and attacks are only written down.
        subject: what to evaluate.
        attacks: by name, with their sources opened.
        precisions: of the attacks, as `precisions_of` chose them.
        trainer: has the device and the processes.
        telling: takes lines and shows progress.
        written: called with the folder whenever results were written there: before the audit, and
            after it.
        compilation: how the attacks take gradients, as `compilation_of` chose it.

    Raises:
        UserError: the models do not fit the data, or the plan's output holds an unfinished run of
            other settings.
    """
    output, data, say = Path(plan.output), subject.data, telling.say
    device = trainer.strategy.root_device
    # What does not fit leaves no journal.
    engine = engine_of(plan, subject, attacks, precisions, compilation)
    settings = identity(plan, subject, precisions, compilation)
    fresh = plan.fresh and first_process()
    engine.journal = journal = open_journal(output / "journal", settings, engine, fresh, say)
    evaluation = evaluation_of(plan, subject, engine, say, journal)
    audited = journalled_audit(journal, plan.audit_images) if plan.audit else {}
    audit = (
        Audit(engine, images_of(data), plan.audit_images) if plan.audit and not audited else None
    )
    cost = cost_of(evaluation, data, audit, device, say)
    evaluation.planned = cost.evaluations
    if audit is not None and first_process():
        begin_audit(audit, evaluation, data, plan.seed, device, say)
    share = cost.evaluations * cost.images / trainer.world_size or None
    with telling.progress("attacking", share) as engine.advance:
        trainer.test(evaluation, datamodule=data, verbose=False)
    content = explained(
        plan,
        evaluation,
        subject.target,
        subject.name,
        subject.unfit,
        precisions,
        compilation,
        device,
        data,
        subject.images,
        subject.training_seed,
        subject.doubts,
    )
    if not trainer.is_global_zero:
        return content
    content |= doubt_classes(content, evaluation, data, device, output, say, plan.handed_over)
    if weak := too_weak(content):
        say(Doubt(f"warning: {weak}"))
    write_json(content, output / "results.json")
    save_requested(evaluation, plan, device, say)
    written(output)
    telling.figures(content)
    if plan.export:
        pictures = output / "png"
        evaluation.to(device)  # Lightning has moved it to the CPU
        content["export"] = export(
            engine, data, evaluation.records, pictures, data.batch_size, device, say
        )
        write_json(content, output / "results.json")
        written(output)
        say(export_line(content["export"], pictures))
    if audit is not None:
        say(f"{output / 'results.json'} holds these figures; their audit goes on")
        audited = finish_audit(audit, evaluation, device, journal, say)
    if audited:
        content |= audited
        write_json(content, output / "results.json")
        written(output)
    journal.finish()
    return content
