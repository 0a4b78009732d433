"""Carries out the plan of an evaluation: `evaluate`."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

from robusttrain.attacks.parts.gradients import NO_GRADIENT
from robusttrain.attacks.sources.surrogates import surrogates_in
from robusttrain.config.attacks import scenario, stem
from robusttrain.config.checkpoints import read_recipe, training_seed
from robusttrain.config.suites import left_out, refuse_few_classes
from robusttrain.config.targets import build_data, build_target, training_data
from robusttrain.config.trainer import trainer_from
from robusttrain.core.advice import without_advice
from robusttrain.core.errors import UserError
from robusttrain.core.processor import FEW
from robusttrain.core.rng import Rng
from robusttrain.core.telling import SILENT, Doubt, Say, Telling, duration
from robusttrain.data import ImageData
from robusttrain.data.notes import note
from robusttrain.evaluation.beside import classifier_alone
from robusttrain.evaluation.cost import check_sources
from robusttrain.evaluation.covering import boundless, covering, threats_of
from robusttrain.evaluation.engine import Engine
from robusttrain.evaluation.export import check_export
from robusttrain.evaluation.fitting import (
    check_copy,
    doubts,
    few_classes,
    one_threat,
    refuse_names,
    refuse_other_radii,
    refuse_undeclared,
    settle,
)
from robusttrain.evaluation.handed_on import refuse_hidden, without_gradient, zero_gradients
from robusttrain.evaluation.outputs import codes_of, in_its_own_folder
from robusttrain.evaluation.plan import EvaluationPlan
from robusttrain.evaluation.pricing import LONG
from robusttrain.evaluation.rehearsing import rehearse
from robusttrain.evaluation.running import (
    Subject,
    attack,
    certification_of,
    compilation_of,
    identity,
    precisions_of,
    settings_of,
)
from robusttrain.evaluation.scenario import Scenario
from robusttrain.evaluation.strangers import strangers
from robusttrain.evaluation.taking import check_classes
from robusttrain.evaluation.vanishing import ZERO
from robusttrain.models.compiling import Mode
from robusttrain.models.defended import DefendedClassifier
from robusttrain.reporting.report import write_report
from robusttrain.running.class_numbers import refuse_other_numbers
from robusttrain.running.f_b import provide_f_b
from robusttrain.running.made_from import digests, edited, other_images
from robusttrain.running.precision_of_g import refuse_auto
from robusttrain.running.purifiers import folder_in, provide
from robusttrain.running.surrogate_training import train_surrogate
from robusttrain.running.surrogates import Keeper, with_paths
from robusttrain.storage.files import may_write
from robusttrain.storage.journal import refuse_others
from robusttrain.storage.occupied import EVALUATION, refuse_another

#: Why attacks that follow a gradient are left out of suites where there is none.
HIDDEN = "the model hands on no gradient: a step inside it votes, rounds or is detached"


@without_advice()
def evaluate(
    plan: EvaluationPlan,
    telling: Telling = SILENT,
    precisions: dict[str, str] | None = None,
    compiled: Mode | None = None,
) -> dict[str, Any]:
    """Carry out a plan; what is returned was also written to ``results.json``, with a
    ``report.html`` beside it (in the first of several processes).

    Args:
        plan: what to evaluate.
        telling: who listens.
        precisions: of the attacks, where an earlier run chose them; else as the plan says.
        compiled: how they take gradients, likewise.
    """
    refuse_another(may_write(Path(plan.output), "--output"), EVALUATION)
    subject, attacks = opened(plan, telling.say)
    plan = in_its_own_folder(plan, settings_of(plan, subject), attacks, telling.say)
    trainer = tester(plan.trainer, telling.say)
    if precisions is None:
        device = trainer.strategy.root_device
        precisions = precisions_of(plan, subject, attacks, device, telling.say)
    compilation = compilation_of(
        plan, subject, attacks, precisions, trainer.strategy.root_device, telling.say, compiled
    )
    known = identity(plan, subject, precisions, compilation)
    attacks = provide_surrogates(plan.without(subject.unfit), attacks, subject, known, telling)
    return attack(plan, subject, attacks, precisions, trainer, telling, write_report, compilation)


def opened(plan: EvaluationPlan, say: Say) -> tuple[Subject, dict[str, Scenario]]:
    """The subject of a plan, and the attacks that apply to it."""
    subject = fitted(plan, *build_parts(plan, say), say)
    fitting = plan.without(subject.unfit)
    attacks = {name: scenario(node, name) for name, node in fitting.attacks.items()}
    alone = {name: scenario(plan.attacks[name], name) for name in for_the_bare(plan, subject)}
    return applying(fitting, subject, attacks, alone, say)


def applying(
    plan: EvaluationPlan,
    subject: Subject,
    attacks: dict[str, Scenario],
    alone: dict[str, Scenario],
    say: Say,
) -> tuple[Subject, dict[str, Scenario]]:
    """The subject, with all that is known before anything is attacked, and the attacks that apply
    to it.

    Args:
        plan: what is evaluated, without attacks that do not apply.
        subject: of the evaluation.
        attacks: of the plan.
        alone: attacks of the classifier without its defense alone.
        say: takes lines.

    Raises:
        UserError: as `check`, `with_gradients` and `rehearse` say.
    """
    doubted: list[str] = []

    def heard(line: str) -> None:
        """Say a line, and keep it for the results where it is a doubt."""
        if isinstance(line, Doubt):
            doubted.append(str(line))
        say(line)

    engine = check(plan, attacks, subject, heard)
    subject = with_gradients(plan, subject, engine, alone, heard)
    attacks = {name: each for name, each in attacks.items() if name not in subject.unfit}
    codes, first = codes_of({**attacks, **subject.bare}), subject.data.first_test_batch()
    own = [name for name in attacks if name in codes]
    rehearse(engine, attacks, own, first.images, first.labels, first.indices)
    return replace(subject, codes=codes, doubts=doubted), attacks


def check(plan: EvaluationPlan, attacks: dict[str, Scenario], subject: Subject, say: Say) -> Engine:
    """Raise UserError if attacks do not fit the subject or each other, before anything is written
    or trained; say which radii are no bound.

    Returns:
        An engine of those attacks that need no model of the attacker's own.
    """
    if not attacks and not plan.certify:
        raise UserError(
            "attacks: there is none, and what was not attacked says nothing about robustness: name"
            " one, or a suite"
        )
    refuse_undeclared(attacks)
    refuse_other_radii(plan.epsilon, {name: each.attack.threat for name, each in attacks.items()})
    facts = subject.data.facts()
    refuse_few_classes(attacks, facts.num_classes)
    refuse_names(attacks)
    one_threat(attacks)
    bounds = {name: each.attack.threat for name, each in attacks.items()}
    for line in [
        *doubts(attacks),
        *boundless(bounds),
        *few_classes(subject.data),
    ]:
        say(Doubt(line))
    at_hand = {
        name: attacks[name] for name, node in plan.attacks.items() if not surrogates_in(node)
    }
    engine = Engine(subject.target, at_hand)
    check_sources(engine, subject.data)
    refuse_other_numbers(plan.attacks, engine, subject.data.class_names)
    tell_strangers(engine, subject.data, say)
    certification_of(plan, subject, engine)
    option = "threat" if plan.handed_over else "--epsilon"
    threats = [(option, each.attack.threat) for each in attacks.values()]
    for line in covering([*threats, *threats_of(subject.target.defense)], facts):
        say(Doubt(line))
    return engine


def tell_strangers(engine: Engine, data: ImageData, say: Say) -> None:
    """Say which attacks differentiate another model that does not know the images."""
    first = data.first_test_batch()
    given = (first.images, first.labels, first.indices)
    for line in strangers(engine, *given, data.facts().num_classes):
        say(Doubt(line))


def with_gradients(
    plan: EvaluationPlan, subject: Subject, engine: Engine, alone: dict[str, Scenario], say: Say
) -> Subject:
    """The subject, for which attacks of suites do not apply that would follow a gradient where none
    is handed on, as by a model that votes, rounds, or detaches an image inside.

    Args:
        plan: what is evaluated, without attacks that do not apply.
        subject: of the evaluation.
        engine: of the attacks at hand.
        alone: attacks of the classifier without its defense alone.
        say: takes a line on what is left out.

    Raises:
        UserError: an attack of these was named, a defense wrongly says that it can be
            differentiated, or nothing is left.
    """
    first = subject.data.first_test_batch()
    given = (first.images, first.indices)
    blind = without_gradient(engine, *given)
    idle = [name for name in zero_gradients(engine, *given) if name not in blind]
    if blind or idle:
        refuse_hidden(subject.target, [*blind, *idle], *given)
    if idle:
        say(Doubt(f"warning: {', '.join(idle)}: {ZERO}"))
    asked = {stem(each) for each in plan.asked}
    for name, why in blind.items():
        if name in asked:
            raise UserError(f"{'attacks' if plan.handed_over else '--attack'} {name}: {why}")
    reasons = {name: HIDDEN if why == NO_GRADIENT else why for name, why in blind.items()}
    for why in dict.fromkeys(reasons.values()):
        named = [name for name, because in reasons.items() if because == why]
        if len(blind) == len(plan.attacks):
            raise UserError(f"no attack applies, because {why}: --suite query needs no gradient")
        say(f"left out: {', '.join(named)}, because {why}")
    if alone:
        bare = DefendedClassifier(None, subject.target.classifier)
        without = without_gradient(Engine(bare, alone), *given)
        alone = {name: each for name, each in alone.items() if name not in without}
    return replace(subject, unfit={**subject.unfit, **reasons}, bare=alone)


def tester(settings: Mapping[str, Any], say: Say) -> Any:
    """Lightning's Trainer for an evaluation, which has a bar and a table of its own.

    Args:
        settings: ``--trainer.*`` options.
        say: takes lines, also the one about a process of several that has ended.
    """
    return trainer_from(
        {**settings, "enable_model_summary": False, "enable_progress_bar": False},
        say,
        logger=False,
        enable_checkpointing=False,
    )


def held_out(plan: EvaluationPlan) -> bool:
    """Whether the target's checkpoint says that its training held out the very images that the
    plan's data hold out for validation.
    """
    trained = {} if plan.checkpoint is None else read_recipe(plan.checkpoint).get("data") or {}

    def chosen(node: Mapping[str, Any]) -> list[Any]:
        said = node.get("init_args") or {}
        return [node.get("class_path"), *map(said.get, ("root", "validation", "seed"))]

    return chosen(trained) == chosen(plan.data)


def tell_unless_held_out(plan: EvaluationPlan, data: ImageData) -> None:
    """Note with the data, once they are set up, where validation images may have been trained on,
    for all that is known.
    """
    if plan.split != "validation":
        return
    if not held_out(plan):
        unknown = (
            "--split validation: whether the model was trained on these images is not known; a"
            " checkpoint of train.py says which it held out"
        )
        note(data.notes, unknown)
    elif changed := other_images(read_recipe(plan.checkpoint or ""), digests(data)):
        note(
            data.notes,
            f"--split validation: the training images have changed since the training ({changed}),"
            " so the model may have been trained on some of these",
        )


def build_parts(plan: EvaluationPlan, say: Say) -> tuple[DefendedClassifier, str, ImageData]:
    """The target of a plan, its name, and its data, set up for "test"."""
    data = build_data(plan)
    folder = Path(plan.checkpoints) / "f_b"

    def find_networks(defense: dict[str, Any]) -> None:
        refuse_auto(defense)
        provide_f_b(defense, data, "f_b", folder, plan.trainer, plan.seed, train=False, say=say)
        purifiers = folder_in(plan.checkpoints)
        provide(defense, data, purifiers, plan.trainer, plan.seed, trains=False, say=say)

    target, name = build_target(plan, data, find_networks)
    check_export(plan.export, data.facts().channels)
    data.prepare_data()
    data.setup("test")
    tell_unless_held_out(plan, data)
    if plan.checkpoint is not None and edited(plan.checkpoint, target.classifier):
        note(data.notes, f"the code of {name}'s network was edited since its training")
    return target, name, data


def fitted(
    plan: EvaluationPlan,
    target: DefendedClassifier,
    name: str,
    data: ImageData,
    say: Say,
    missing: Mapping[str, str] = MappingProxyType({}),
) -> Subject:
    """The subject of an evaluation: a target that takes the data, and which attacks do not apply.

    Args:
        plan: what is to be evaluated.
        target: on the CPU.
        name: of the target, in the report.
        data: set up for "test".
        say: takes a line on each attack of a suite that is left out.
        missing: attacks of its suites that cannot be built, and why.

    Raises:
        UserError: the target cannot take the images, or has other classes.
    """
    # Which attacks apply, and how often each image is scored, hangs on whether the target is
    # random, whatever it says of itself.
    first, start = data.first_test_batch(), time.perf_counter()
    check_classes(target, first.images, data.facts().num_classes)
    if (took := time.perf_counter() - start) > LONG:
        say(
            f"the model took {duration(took)} to answer one image and two: it is asked some dozens"
            f" of times, about up to {FEW} images, before the first attack, for checks and for"
            " what the evaluation will cost"
        )
    settle(target, first.images, first.indices, plan.seed)
    rng = Rng.for_images(plan.seed, first.indices).fold("copy")
    check_copy(target, first.images, rng, say)
    suites = left_out(plan.suites, plan.asked, target, data)
    unfit = {**(plan.unfit or {}), **missing, **{stem(each): why for each, why in suites.items()}}
    if plan.unfit and not plan.attacks.keys() - unfit.keys():
        reasons = "; ".join(dict.fromkeys(unfit.values()))
        raise UserError(f"--suite {' '.join(plan.suites)}: no attack applies, because {reasons}")
    for why in dict.fromkeys(unfit.values()):
        names = ", ".join(attack for attack, because in unfit.items() if because == why)
        say(f"left out: {names}, because {why}")
    seed = None if plan.checkpoint is None else training_seed(plan.checkpoint)
    return Subject(target, name, data, unfit, training_seed=seed)


def for_the_bare(plan: EvaluationPlan, subject: Subject) -> list[str]:
    """Attacks of the plan's suites that apply to the classifier without its defense, and not behind
    it; none if the plan does not ask for them, or it takes no images without the defense.
    """
    if not plan.bare_classifier or subject.target.defense is None:
        return []
    first = subject.data.first_test_batch()
    try:
        bare = classifier_alone(subject.target, first.images, first.indices)
    except UserError:  # `besides_of` says it
        return []
    unfit = {stem(name) for name in left_out(plan.suites, plan.asked, bare, subject.data)}
    return [name for name in subject.unfit if name in plan.attacks and name not in unfit]


def provide_surrogates(
    plan: EvaluationPlan,
    attacks: dict[str, Scenario],
    subject: Subject,
    known: Mapping[str, Any],
    telling: Telling,
) -> dict[str, Scenario]:
    """The attacks with the models that the attacker trains, found where they were kept or trained
    now.

    Args:
        plan: what is evaluated, without attacks that do not apply.
        attacks: by name, as far as they can be built without those models.
        subject: of the evaluation.
        known: the evaluation's `identity`.
        telling: who listens.
    """
    needed = surrogates_in(plan.attacks)
    if not needed:
        if plan.surrogate_epochs is not None:
            telling.say("surrogate_epochs: no attack here trains a model, so it has no effect")
        return attacks
    # What does not fit is found before the attacker's models are trained.
    if not plan.fresh:
        refuse_others(Path(plan.output) / "journal", known)
    paths = keeper_of(plan, subject).provide(
        needed, train_surrogate, plan.surrogate_epochs, telling
    )
    attacks = {name: scenario(with_paths(node, paths), name) for name, node in plan.attacks.items()}
    trained = {name: attacks[name] for name, node in plan.attacks.items() if surrogates_in(node)}
    tell_strangers(Engine(subject.target, trained), subject.data, telling.say)
    return attacks


def keeper_of(plan: EvaluationPlan, subject: Subject) -> Keeper:
    """What keeps the models that the attacker trains."""
    folder = Path(plan.checkpoints) / "surrogates"
    return Keeper(folder, subject.target, training_data(plan), plan.trainer, plan.defense)
