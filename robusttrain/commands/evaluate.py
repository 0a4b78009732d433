"""What ``python evaluate.py`` does: parse, build, attack, report."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import torch
from rich.progress import Progress

from robusttrain.commands import transfer
from robusttrain.commands.auditing import begin_audit, finish_audit, images_of, kept_audit
from robusttrain.commands.class_doubts import doubt_classes
from robusttrain.commands.estimate import announce, check_sources
from robusttrain.commands.f_b import provide_f_b
from robusttrain.commands.keeping import explained, fingerprint, keep, open_journal
from robusttrain.commands.precision import Run, choose_precisions
from robusttrain.commands.surrogate_training import train_surrogate
from robusttrain.commands.surrogates import Keeper, surrogates_in, with_paths
from robusttrain.config.attacks import scenario, stem
from robusttrain.config.command_line import take, trainer_from
from robusttrain.config.evaluation import again, read_plan
from robusttrain.config.suites import left_out
from robusttrain.config.targets import build_data, build_target, training_data
from robusttrain.core.console import console, first_process, say
from robusttrain.core.errors import UserError
from robusttrain.core.stopping import saying_how_to_go_on
from robusttrain.data import ImageData
from robusttrain.evaluation import (
    Audit,
    Engine,
    Evaluation,
    Scenario,
    audit_table,
    one_threat,
    table,
)
from robusttrain.evaluation.export import check_export, export, told_export
from robusttrain.evaluation.plan import EvaluationPlan
from robusttrain.evaluation.report import changes, read_results
from robusttrain.models.defended import DefendedClassifier
from robusttrain.storage.files import writable, write_json
from robusttrain.storage.journal import refuse_others

#: Exit codes: the audit's verdict is not sound (with --strict); a repeated evaluation came out
#: otherwise.
UNSOUND, OTHERWISE = 3, 4


def run(arguments: list[str]) -> None:
    """Attack as the command line says."""
    with saying_how_to_go_on(
        say, lambda: "what was finished is kept; the same command goes on from there"
    ):
        repeated, rest = take(arguments, lambda option: option == "--again", "give a results.json")
        if repeated:
            repeat(repeated[-1][1], rest)
        elif transfer.chosen(arguments):
            transfer.run(arguments)
        else:
            plan = read_plan(arguments)
            found = evaluate(plan)
            if plan.strict and found.get("verdict", "sound") != "sound":
                sys.exit(UNSOUND)


def repeat(path: str, rest: list[str]) -> None:
    """Evaluate again what a results.json tells of, beside it, and say whether it came out the
    same.

    The file may come from elsewhere: classes of other packages need ``--trust`` anew, whatever it
    says itself.
    """
    trusted, rest = take(rest, lambda option: option == "--trust", "give the name of a package")
    if rest:
        raise UserError(f"--again {path}: repeats an evaluation as it was: leave out {rest[0]}")
    before = read_results(path)
    where = Path(path) if Path(path).is_dir() else Path(path).parent
    plan = again(before.plan, where / "again", [name for _, name in trusted])
    found = evaluate(plan, before.json["precision"]["attacks"])
    told = list(changes(before.json, json.loads(json.dumps(found))))
    for line in told:
        say(f"differs: {line}")
    here = (
        ""
        if found["processor"] == before.json["processor"]
        else ", on another processor or version of torch"
    )
    say(f"again: {'the same' if not told else f'{len(told)} figures or facts differ'}{here}")
    if told:
        sys.exit(OTHERWISE)


def evaluate(plan: EvaluationPlan, precisions: dict[str, str] | None = None) -> dict[str, Any]:
    """Carry out a plan; what is returned was also written to ``results.json`` (in the first of
    several processes).

    Args:
        plan: what to evaluate.
        precisions: of the attacks, where they are known; else as the plan says.
    """
    output = writable(Path(plan.output), "--output")
    data = build_data(plan)
    folder = Path(plan.checkpoints) / "f_b"
    target, told = build_target(
        plan,
        data,
        lambda node: provide_f_b(node, data, "f_b", folder, plan.trainer, plan.seed, train=False),
    )
    check_export(plan.export, data.facts().channels)
    data.prepare_data()
    data.setup("test")

    unfit = {
        stem(name): why for name, why in left_out(plan.suites, plan.asked, target, data).items()
    }
    for name, why in unfit.items():
        say(f"left out: {name}, because {why}")
    left = plan.without(unfit)
    attacks = {name: scenario(node, name) for name, node in left.attacks.items()}
    trainer = trainer_from(
        {**plan.trainer, "enable_model_summary": False, "enable_progress_bar": False},
        logger=False,
        enable_checkpointing=False,
    )
    device = trainer.strategy.root_device
    known = fingerprint(left, target)
    if precisions is None:
        this = Run(output, known, plan.fresh and first_process())
        precisions = choose_precisions(
            plan.precision, target, attacks, data, plan.seed, this, device
        )
    known |= {"precision": precisions}
    attacks = provide_surrogates(left, attacks, target, data, known)
    types = {name: getattr(torch, chosen) for name, chosen in precisions.items()}
    keep_images = plan.save_images or plan.export is not None
    engine = Engine(target, attacks, plan.seed, plan.draws, types, plan.survivors, keep_images)
    engine.kept = journal = open_journal(output / "journal", known, engine, plan.fresh)

    evaluation = Evaluation(
        engine,
        journal,
        lambda count: say(f"waiting for {count} batches that other processes work on"),
    )
    audited = kept_audit(journal, plan.audit_images) if plan.audit else {}
    audit = (
        Audit(engine, images_of(data), plan.audit_images) if plan.audit and not audited else None
    )
    total = announce(engine, data, audit)
    if audit is not None and first_process():
        begin_audit(audit, evaluation, data, plan.seed, device)
    with Progress(console=console, disable=not sys.stderr.isatty() or total is None) as progress:
        task = progress.add_task("attacking", total=(total or 0) / trainer.world_size)
        engine.advance = lambda count: progress.advance(task, count)
        trainer.test(evaluation, datamodule=data, verbose=False)
    found = explained(plan, evaluation, target, told, unfit, precisions, device, data)
    if not trainer.is_global_zero:
        return found
    found |= doubt_classes(found, evaluation, data, device, output)
    write_json(found, output / "results.json")
    keep(evaluation, plan)
    if plan.export:
        pictures = output / "png"
        found["export"] = export(engine, data, evaluation.records, pictures, data.batch_size)
        write_json(found, output / "results.json")
        say(told_export(found["export"], pictures))
    if audit is not None:
        audited = finish_audit(audit, evaluation, device, journal)
    if audited:
        found |= audited
        write_json(found, output / "results.json")
    journal.finish()
    console.print(table(found))
    if audited:
        console.print(audit_table(found))
    say(f"written: {output / 'results.json'}")
    return found


def provide_surrogates(
    plan: EvaluationPlan,
    attacks: dict[str, Scenario],
    target: DefendedClassifier,
    data: ImageData,
    known: dict[str, Any],
) -> dict[str, Scenario]:
    """The attacks with the models that the attacker trains, found where they were kept or trained
    now.

    Args:
        plan: what is evaluated.
        attacks: by name, as far as they can be built without those models.
        target: of the evaluation.
        data: set up for "test".
        known: the evaluation's fingerprint.
    """
    needed = surrogates_in(plan.attacks)
    if not needed:
        return attacks
    # What does not fit is found before the attacker's models are trained.
    if not plan.fresh:
        refuse_others(Path(plan.output) / "journal", known)
    one_threat(attacks)
    at_hand = {
        name: attacks[name] for name, node in plan.attacks.items() if not surrogates_in(node)
    }
    check_sources(Engine(target, at_hand), data)
    folder = Path(plan.checkpoints) / "surrogates"
    keeper = Keeper(folder, target, training_data(plan), plan.trainer, plan.defense)
    paths = keeper.provide(needed, train_surrogate, plan.surrogate_epochs)
    return {name: scenario(with_paths(node, paths), name) for name, node in plan.attacks.items()}
