"""Carries out the plan of a measurement of transfer: `measure_transfer`."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from glob import escape
from itertools import chain
from pathlib import Path
from typing import Any

import torch

from robusttrain.attacks.base import Cost
from robusttrain.attacks.parts.threats import described
from robusttrain.config.attacks import scenario
from robusttrain.config.build import build
from robusttrain.config.models import named_models
from robusttrain.config.suites import refuse_few_classes
from robusttrain.config.transfer import of_another_model
from robusttrain.core.errors import UserError
from robusttrain.core.processor import processor
from robusttrain.core.telling import SILENT, Doubt, Say, Telling
from robusttrain.core.typed import line
from robusttrain.data import Batch, ImageData
from robusttrain.data.batches import Split
from robusttrain.evaluation import one_threat
from robusttrain.evaluation.covering import covering
from robusttrain.evaluation.fitting import doubts, refuse_other_radii
from robusttrain.evaluation.outputs import versions
from robusttrain.evaluation.strangers import guesses
from robusttrain.reporting import heat_map, perturbations, png
from robusttrain.storage.files import hash_of_weights, may_write, write_json, write_whole
from robusttrain.storage.journal import differences, digest, some
from robusttrain.storage.occupied import TRANSFER, content_of, refuse_another
from robusttrain.transfer import Crafting, Matrix, Model, Outcome, Planned
from robusttrain.transfer.commonly_correct import CommonlyCorrect, commonly_correct
from robusttrain.transfer.estimates import Estimate
from robusttrain.transfer.measuring import measure, part_of_results
from robusttrain.transfer.plan import TransferPlan
from robusttrain.transfer.predictions import every_model_right
from robusttrain.transfer.success import unattacked

#: Of a plan, what changes no figure.
PLACES = ("output", "crafted")


@dataclass(frozen=True)
class Parties:
    """Who takes part, built.

    Args:
        data: set up for "test".
        models: by name, on their device.
        sources: names of those that are crafted on.
        targets: names of those that are tested.
    """

    data: ImageData
    models: dict[str, Model]
    sources: list[str]
    targets: list[str]

    def makers(self, held_out: bool) -> dict[str, list[str]]:
        """The models that are crafted on together, by what tables call them."""
        makers = {name: [name] for name in self.sources}
        if held_out:
            makers |= {
                f"all but {name}": [each for each in self.models if each != name]
                for name in self.targets
            }
        return makers


def measure_transfer(plan: TransferPlan, telling: Telling = SILENT) -> dict[str, dict[str, Matrix]]:
    """Craft on each model, test on all; the matrices by attack, which were also written to
    ``results.json``, with pictures beside it.

    Args:
        plan: what to measure.
        telling: who listens.
    """
    attacks = {name: Planned(scenario(node, name), node) for name, node in plan.attacks.items()}
    refuse_own_models(attacks)
    scenarios = {name: planned.scenario for name, planned in attacks.items()}
    one_threat(scenarios)
    refuse_other_radii(plan.epsilon, {name: each.attack.threat for name, each in scenarios.items()})
    output = may_write(Path(plan.output), "--output")
    before = of_before(output, plan, telling.say)
    crafted = may_write(Path(plan.crafted), "--crafted")
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    parties = build_parties(plan, device)
    data, models, targets = parties.data, parties.models, parties.targets
    parts = parts_of(parties)
    tell_other_parts(before, plan, parts, output, telling.say)
    defended = {name: model.defended for name, model in models.items()}
    common = commonly_correct(defended, data.test_dataloader(), data.num_classes, plan.seed)
    each = ", ".join(f"{name} ({100 * share:.1f} %)" for name, share in common.accuracy.items())
    telling.say(
        f"{len(common.indices)} of {common.candidates} images are classified correctly by all of"
        f" {each}"
    )
    for doubtful in at_chance(common, data.num_classes):
        telling.say(Doubt(doubtful))
    refuse_few_classes(scenarios, data.num_classes)
    for doubt in doubts(scenarios):
        telling.say(doubt)
    precision = getattr(torch, plan.precision)
    crafting = Crafting(
        models, attacks, crafted, plan.seed, precision, plan.draws, plan.fuse, telling.say
    )

    def batches() -> Iterable[Batch]:
        for start in range(0, len(common.indices), data.batch_size):
            batch = data.test_images(common.indices[start : start + data.batch_size])
            yield Batch(*(part.to(device) for part in batch))

    makers = parties.makers(plan.held_out)
    crafting.compare_copies(dict.fromkeys(chain(*makers.values())), next(iter(batches())))
    costs = {  # what does not fit is found before hours are spent
        name: max((crafting.cost(name, members) for members in makers.values()), key=sum)
        for name in attacks
    }

    clean = crafting.clean(targets, batches())
    labels = torch.cat([batch.labels.cpu() for batch in batches()])
    of = every_model_right(clean, labels)  # or nothing could be measured in the end
    random = [name for name in targets if models[name].defended.random]
    idle = unattacked(crafting.clean(random, batches(), purpose="score"), labels, of)
    for said in of_themselves(idle):
        telling.say(said)
    announce(costs, makers, len(labels), telling.say)
    radii = [("--epsilon", planned.scenario.attack.threat) for planned in attacks.values()]
    for wide in covering(radii, data.facts()):
        telling.say(wide)
    outcomes: dict[str, dict[str, Outcome]] = {name: {} for name in attacks}
    total = len(attacks) * len(makers) * len(labels)
    with telling.progress("crafting and testing", total) as advance:

        def watched() -> Iterable[Batch]:
            for batch in batches():
                yield batch
                advance(len(batch.labels))

        for name in attacks:
            for maker, members in makers.items():
                outcomes[name][maker] = crafting.run(name, members, targets, watched())
    matrices = {name: measure(outcomes[name], labels, clean) for name in attacks}
    about: dict[str, Any] = {
        "command": line(),
        "models": {name: model.about for name, model in models.items()},
        "data": type(data).__name__,
        **parts,
        "indices": common.indices.tolist(),
        "images": len(labels),
        "candidates": common.candidates,
        "clean_accuracy": common.accuracy,
        "unattacked": {name: share.json() for name, share in idle.items()},
        "threat": threat(attacks),
        "seed": plan.seed,
        "draws": plan.draws if random else 1,
        "precision": plan.precision,
        "attacks": {name: part_of_results(outcomes[name], matrices[name]) for name in attacks},
        "processor": processor(device),
        "versions": versions(),
        "plan": plan.to_json(),
    }
    # No picture of a measurement that is gone; first, since nobody knows their names afterwards.
    for name in before.get("attacks") or ():
        for path in output.glob(f"{escape(name)}-*top1.png"):
            path.unlink(missing_ok=True)
    write_json(about, output / "results.json")
    # A member of an ensemble is attacked with its own gradients, too.
    white = {(maker, each) for maker, members in makers.items() for each in members}
    for name, measured in matrices.items():
        for kind in (kind for kind in measured if kind.endswith("top1")):
            picture = png(heat_map(measured[kind], white))
            write_whole(output / f"{name}-{kind}.png", picture)
    pictures = pictured(outcomes, next(iter(makers)), targets[-1], next(iter(batches())), data)
    write_whole(output / "images.png", pictures)
    return matrices


def of_before(output: Path, plan: TransferPlan, say: Say) -> dict[str, Any]:
    """What an earlier measurement left in the folder; ``say`` hears what differs from this one.

    Raises:
        UserError: an evaluation lies there.
    """
    refuse_another(output, TRANSFER)
    before = content_of(output)
    if before.get("plan") and (lines := other_plan(before, plan)):
        say(_takes_place(output, lines))
    return before


def other_plan(before: Mapping[str, Any], plan: TransferPlan) -> list[str]:
    """What differs between an earlier measurement's plan and this one."""
    there = {key: value for key, value in (before.get("plan") or {}).items() if key not in PLACES}
    here = {key: value for key, value in plan.to_json().items() if key not in PLACES}
    return differences(there, here)


def parts_of(parties: Parties) -> dict[str, Any]:
    """Hashes of what a plan names, for results.json."""
    tested: Split = parties.data.test_dataloader().dataset  # type: ignore[assignment]
    weights = {name: hash_of_weights(model.defended) for name, model in parties.models.items()}
    return {"weights": weights, "data_hash": digest(tested.identity())}


def tell_other_parts(
    before: Mapping[str, Any],
    plan: TransferPlan,
    parts: Mapping[str, Any],
    output: Path,
    say: Say,
) -> None:
    """Say where an earlier measurement of the same plan was one of other weights or images: files
    under the same names.
    """
    if not before.get("plan") or other_plan(before, plan):
        return  # told already
    there = {key: before[key] for key in parts if key in before}
    if lines := differences(there, {key: parts[key] for key in there}):
        say(_takes_place(output, lines))


def _takes_place(output: Path, lines: Sequence[str]) -> str:
    return (
        f"{output}: takes the place of a measurement that differs in {some(lines)}; another"
        " --output keeps both"
    )


def at_chance(common: CommonlyCorrect, classes: int) -> list[str]:
    """A line for each model that is right no more often than by chance on the candidates: what it
    happens to have right is no sample of what it knows.
    """
    count = common.candidates
    return [
        f"warning: {name}: is right on {round(share * count)} of {count} images, which chance"
        f" explains ({classes} classes): was it made for other images, or another order of the"
        " classes? Its rows and columns say nothing of transfer, and the few images left say little"
        " of the others"
        for name, share in common.accuracy.items()
        if guesses(share, count, classes)
    ]


def of_themselves(idle: Mapping[str, Estimate]) -> list[str]:
    """A line for each random target, by its share of images that it has wrong as they are: every
    success rate holds that share.
    """
    return [
        f"{name}: is random, and without any attack misclassifies {share.text()} of the"
        f" {share.images:,} images that count, in the draws that score: read its success rates"
        " against that"
        for name, share in idle.items()
    ]


def refuse_own_models(attacks: Mapping[str, Planned]) -> None:
    """Raise `of_another_model` if an attack brings another model to differentiate."""
    for name, planned in attacks.items():
        if planned.scenario.source.others:
            raise of_another_model(name)


def build_parties(plan: TransferPlan, device: torch.device) -> Parties:
    """Data and models of a plan."""
    data: ImageData = build(plan.data, "data", kind=ImageData)
    if plan.images is not None:
        data.limit_test(plan.images, plan.seed)
    models = named_models(plan.models, data, plan.trust, device)
    sources = among(models, plan.sources, "--sources")
    targets = among(models, plan.targets, "--targets")
    data.prepare_data()
    data.setup("test")
    return Parties(data, models, sources, targets)


def among(models: Iterable[str], chosen: list[str] | None, option: str) -> list[str]:
    """Names out of ``--models``; all of them where none is chosen."""
    names = list(models)
    if unknown := [name for name in chosen or () if name not in names]:
        raise UserError(f"{option} {unknown[0]}: is not among the models ({', '.join(names)})")
    if twice := [name for name in chosen or () if (chosen or []).count(name) > 1]:
        raise UserError(f"{option} {twice[0]}: is named twice: leave one of them out")
    return chosen or names


def announce(
    costs: Mapping[str, Cost], makers: dict[str, list[str]], images: int, say: Say
) -> None:
    """Say what crafting costs before it starts: ``costs`` of an image, by attack, on the source
    where it costs most.
    """
    models = sum(map(len, makers.values()))
    for name, cost in costs.items():
        effort = f"{cost.gradients} gradient evaluations" + (
            f" and {cost.queries} queries" if cost.queries else ""
        )
        say(
            f"{name}: {effort} per image and model, {images} images, {models} models in"
            f" {len(makers)} sources: {cost.gradients * images * models:,} gradient evaluations,"
            " less what is kept from before"
        )


def threat(attacks: dict[str, Planned]) -> dict[str, Any]:
    """Norm and radius that all attacks share, and a ball of somebody's own."""
    return described(next(iter(attacks.values())).scenario.attack.threat)


def pictured(
    outcomes: dict[str, dict[str, Outcome]],
    maker: str,
    target: str,
    batch: Batch,
    data: ImageData,
    count: int = 4,
) -> bytes:
    """Some adversarial images of one source beside their amplified perturbations, with what one
    target answers.
    """
    names = data.class_names
    adversarial = {name: makers[maker].examples[:count] for name, makers in outcomes.items()}
    answers = {
        name: makers[maker].classes[target][:count, 0, 0].tolist()
        for name, makers in outcomes.items()
    }
    said = {
        name: [names[label] if label >= 0 else "nothing" for label in each]
        for name, each in answers.items()
    }
    labels = [names[label] for label in batch.labels[:count].tolist()]
    return png(perturbations(batch.images[:count].cpu(), adversarial, labels, said))
